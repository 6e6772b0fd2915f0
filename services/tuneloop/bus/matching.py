"""Which stream a subject belongs to, and whether a subject matches a filter."""

from tuneloop.bus import subjects
from tuneloop.errors import InvalidRequest

stream_of_family = {
    "rollout": subjects.ROLLOUTS,
    "feedback": subjects.FEEDBACK,
    "weights": subjects.LEARNER,
    "learner": subjects.LEARNER,
}


def stream_of(subject: str) -> str:
    """The stream that stores `subject` (which may be a filter); raises `InvalidRequest`."""
    tokens = subject.split(".")
    if tokens[:2] == ["tuneloop", "dead"] and len(tokens) > 2:
        return subjects.DEAD_LETTERS
    stream = stream_of_family.get(tokens[3]) if len(tokens) > 4 else None
    if stream is None or tokens[:2] != ["tuneloop", "v1"]:
        raise InvalidRequest(f"subject: no stream stores {subject!r}", param="subject")
    return stream


def matches(subject_filter: str, subject: str) -> bool:
    """Whether `subject` matches: `*` stands for one token, a final `>` for one or more."""
    wanted, tokens = subject_filter.split("."), subject.split(".")
    for position, want in enumerate(wanted):
        if want == ">":
            return len(tokens) > position
        if position >= len(tokens) or want not in ("*", tokens[position]):
            return False
    return len(wanted) == len(tokens)
