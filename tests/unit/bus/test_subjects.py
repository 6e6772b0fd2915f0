"""Every event that is about a user, and every dead letter of one, is found by their hash."""

import pytest

from tuneloop.bus import subjects
from tuneloop.bus.subjects import matches, of_user

ABOUT_ANN = {
    "rollout": subjects.rollout_generated("tuneloop", "ann"),
    "score": subjects.rollout_scored("tuneloop", "ann"),
    "feedback": subjects.feedback("tuneloop", "comment", "ann", "f1"),
    "signal": subjects.signal("tuneloop", "copied", "ann"),
    "retraction": subjects.feedback_retracted("tuneloop", "ann", "f1"),
}


@pytest.mark.parametrize("subject", ABOUT_ANN.values(), ids=ABOUT_ANN)
def test_an_event_and_its_dead_letter_belong_to_their_user(subject: str) -> None:
    # The subject is known of what cannot be decoded, too.
    letter = subjects.dead_letter("learner-tuneloop-feedback", subjects.user_in(subject))
    for found in (subject, letter):
        (place,) = [stream for stream, theirs in of_user("ann") if matches(theirs, found)]
        assert place == subjects.stream_of(found)
        assert not [stream for stream, theirs in of_user("bob") if matches(theirs, found)]


@pytest.mark.parametrize("stream", [stream for stream, _ in of_user("ann")])
def test_what_fills_a_file_is_nobodys_event(stream: str) -> None:
    filler = subjects.filler(stream)
    assert subjects.stream_of(filler) == stream
    consumed = ("tuneloop.v1.tuneloop.feedback.>", "tuneloop.v1.tuneloop.rollout.scored.*")
    assert not [each for each in consumed if matches(each, filler)]
    assert not [theirs for _, theirs in of_user("ann") if matches(theirs, filler)]
