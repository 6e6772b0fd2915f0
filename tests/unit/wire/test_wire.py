"""The codec between domain types and protobuf: round trips, and every refusal names its field."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop import wire
from tuneloop.errors import CorruptData
from tuneloop.feedback import (
    METRIC_NAME,
    Comment,
    Comparison,
    Demonstration,
    Feedback,
    FeedbackKind,
    Metric,
    Ranking,
    Rating,
    Signal,
    SignalKind,
    Thumb,
)
from tuneloop.policies import Activation, WeightsReference
from tuneloop.rollouts import (
    ChatMessage,
    FinishReason,
    PolicyVersionSpan,
    Rollout,
    RolloutSource,
    SamplingParameters,
    Score,
    ScoredRollout,
    ScorerResult,
    merge_spans,
)
from tuneloop.v1 import events_pb2, generation_pb2, rollout_pb2

WHEN = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.text("abcdefXYZ019_-", min_size=1, max_size=12)
moments = st.datetimes(datetime(2001, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
judgements = st.one_of(
    st.builds(Thumb, up=st.booleans()),
    st.builds(Rating, value=st.floats(-10, 10)),
    st.builds(Comparison, chosen=names, rejected=st.lists(names, min_size=1).map(tuple)),
    st.builds(Ranking, completion_ids=st.lists(names, min_size=2).map(tuple)),
    st.builds(Demonstration, text=texts.filter(bool)),
    st.builds(Comment, text=texts.filter(bool)),
    st.builds(
        Metric,
        name=st.from_regex(METRIC_NAME, fullmatch=True),
        value=st.booleans() | st.floats(-1e9, 1e9, exclude_min=True, exclude_max=True),
    ),
)


def rollout(**changes: object) -> Rollout:
    values: dict[str, object] = {
        "completion_id": "chatcmpl-1",
        "group_id": "chatcmpl-1",
        "policy": "tuneloop",
        "tenant": "default",
        "user_hash": "abc",
        "messages": (ChatMessage(role="user", content="Hi"),),
        "prompt_text": "user: Hi",
        "completion_text": "Hello",
        "prompt_token_ids": (1, 2, 3),
        "completion_token_ids": (4, 5),
        "generation_logprobs": (-0.5, -1.5),
        "finish_reason": FinishReason.STOP,
        "policy_version_spans": (
            PolicyVersionSpan(policy_version=1, start=0, end=1),
            PolicyVersionSpan(policy_version=2, start=1, end=2),
        ),
        "sampling": SamplingParameters(stop=("END",), seed=0, top_logprobs=0, logit_bias={7: -1.0}),
        "finished_time": WHEN,
    }
    return Rollout(**{**values, **changes})  # type: ignore[arg-type]


def test_rollout_round_trip() -> None:
    original = rollout()
    assert wire.decode_rollouts_generated(wire.encode_rollout_generated(original)) == (original,)
    assert (original.oldest_policy_version, original.policy_version) == (1, 2)


def test_where_a_rollout_comes_from_travels_with_it() -> None:
    columns = {"answer": [1, {"b": None}], "weight": 0.5, "text": "é"}
    asked = rollout(source=RolloutSource.EVAL, columns=columns)
    assert wire.decode_rollouts_generated(wire.encode_rollout_generated(asked)) == (asked,)
    # Rollouts of before there were sources are users'.
    message = events_pb2.RolloutGenerated.FromString(wire.encode_rollout_generated(asked))
    message.rollout.source = rollout_pb2.ROLLOUT_SOURCE_UNSPECIFIED
    [old] = wire.decode_rollouts_generated(message.SerializeToString())
    assert old.source is RolloutSource.USER
    message.rollout.columns["answer"] = "{"
    with pytest.raises(CorruptData, match=r"columns\.answer: not JSON"):
        wire.decode_rollouts_generated(message.SerializeToString())
    message.rollout.source = 99
    with pytest.raises(CorruptData, match="source: unknown: 99"):
        wire.decode_rollouts_generated(message.SerializeToString())


def test_the_rollouts_of_a_request_share_what_they_have_in_common() -> None:
    first = rollout(prompt_text="x" * 10_000)
    others = [
        replace(first, completion_id=f"chatcmpl-1.{n}", completion_text=f"answer {n}")
        for n in range(1, 8)
    ]
    data = wire.encode_rollout_generated(first, *others)
    assert wire.decode_rollouts_generated(data) == (first, *others)
    assert len(data) < 12_000

    message = events_pb2.RolloutGenerated.FromString(data)
    message.siblings[3].completion_id = first.completion_id
    with pytest.raises(CorruptData, match="siblings: have the same completion_id"):
        wire.decode_rollouts_generated(message.SerializeToString())
    message.siblings[3].ClearField("generation_logprobs")
    with pytest.raises(CorruptData, match="generation_logprobs: 0 for 2 tokens"):
        wire.decode_rollouts_generated(message.SerializeToString())


def test_unset_seed_and_top_logprobs_stay_unset() -> None:
    original = rollout(sampling=SamplingParameters())
    [back] = wire.decode_rollouts_generated(wire.encode_rollout_generated(original))
    assert (back.sampling.seed, back.sampling.top_logprobs) == (None, None)


@given(
    judgement=judgements,
    when=moments,
    metadata=st.dictionaries(texts, texts, max_size=3),
    feedback_id=names,
)
def test_feedback_round_trip(
    judgement: Thumb, when: datetime, metadata: dict[str, str], feedback_id: str
) -> None:
    feedback = Feedback(
        feedback_id=feedback_id,
        policy="tuneloop",
        tenant="default",
        user_hash="u",
        completion_id="c",
        judgement=judgement,
        accepted_time=when,
        metadata=metadata,
    )
    data = wire.encode_feedback(feedback)
    assert wire.decode_feedback(data) == feedback
    assert data == wire.encode_feedback(wire.decode_feedback(data))
    assert feedback.kind is FeedbackKind(type(judgement).__name__.lower())


def session_feedback(**changes: object) -> Feedback:
    values: dict[str, object] = {
        "feedback_id": "f",
        "policy": "p",
        "tenant": "t",
        "user_hash": "u",
        "completion_id": "",
        "session_id": "chat 7/ü",
        "judgement": Thumb(up=True),
        "accepted_time": WHEN,
    }
    return Feedback(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "judgement", [Thumb(up=True), Rating(value=0.5), Metric(name="solved", value=True)]
)
def test_a_session_is_judged_in_the_place_of_a_completion(judgement: Thumb) -> None:
    feedback = session_feedback(judgement=judgement)
    assert wire.decode_feedback(wire.encode_feedback(feedback)) == feedback
    assert feedback.completion_ids == ()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"completion_id": "c"}, "completion_id: must not come with a session_id"),
        ({"session_id": ""}, "completion_id: missing"),
        ({"session_id": "a\n"}, "session_id: must be 1 to 128 characters"),
        ({"session_id": "x" * 129}, "session_id: must be 1 to 128 characters"),
        ({"judgement": Comment(text="no")}, "session_id: a comment cannot judge a session"),
    ],
)
def test_what_cannot_judge_a_session_is_refused(changes: dict[str, object], problem: str) -> None:
    data = wire.encode_feedback(session_feedback(**changes))
    with pytest.raises(CorruptData, match=problem):
        wire.decode_feedback(data)


def test_the_session_of_a_rollout_travels_with_it() -> None:
    first = rollout(session_id="x" * 128)
    sibling = replace(first, completion_id="chatcmpl-1.1")
    data = wire.encode_rollout_generated(first, sibling)
    assert wire.decode_rollouts_generated(data) == (first, sibling)


def test_score_weights_and_activation_round_trip() -> None:
    score = Score(
        reward=None,
        results=(
            ScorerResult(scorer="a", score=None, weight=1.0, informative=True),
            ScorerResult(scorer="b", score=0.0, weight=2.0, informative=False),
        ),
    )
    scored = ScoredRollout(
        completion_id="c", policy="p", score=score, reward_model_version=3, scored_time=WHEN
    )
    assert wire.decode_rollout_scored(wire.encode_rollout_scored(scored)) == scored
    assert not score.informative
    weights = WeightsReference(policy="p", policy_version=4, uri="file:///w", manifest_sha256="ab")
    assert wire.decode_weights_published(wire.encode_weights_published(weights, WHEN)) == weights
    activation = Activation(
        policy="p", policy_version=4, replica="r", activated_time=WHEN, swap_seconds=0.5
    )
    assert wire.decode_activation(wire.encode_activation(activation)) == activation


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("user_hash", "", "user_hash"),
        ("completion_token_ids", (), "completion_token_ids"),
        ("prompt_token_ids", (1, -2), "token_ids"),
        ("generation_logprobs", (-0.5,), "generation_logprobs"),
        ("generation_logprobs", (-0.5, float("nan")), "generation_logprobs"),
        ("generation_logprobs", (-0.5, 0.7), "generation_logprobs"),
        ("policy_version_spans", (), "policy_version_spans"),
        (
            "policy_version_spans",
            (PolicyVersionSpan(policy_version=1, start=1, end=2),),
            "policy_version_spans",
        ),
        ("sampling", SamplingParameters(temperature=-1), "temperature"),
        ("sampling", SamplingParameters(n=0), "n"),
        ("sampling", SamplingParameters(top_p=0), "top_p"),
        ("session_id", "\x85", "session_id"),
        ("session_id", "x" * 129, "session_id"),
    ],
)
def test_bad_rollout_is_refused_by_field(field: str, value: object, named: str) -> None:
    data = wire.encode_rollout_generated(rollout(**{field: value}))
    with pytest.raises(CorruptData) as caught:
        wire.decode_rollouts_generated(data)
    assert caught.value.param == named


def test_bytes_that_are_no_protobuf_are_refused() -> None:
    with pytest.raises(CorruptData, match=r"not a tuneloop\.v1\.FeedbackGiven"):
        wire.decode_feedback(b"\xff\xff\xff")
    with pytest.raises(CorruptData, match="event_id"):
        wire.decode_feedback(b"")


@pytest.mark.parametrize(
    ("metric", "named"),
    [
        (events_pb2.Metric(boolean=True), "metric.name"),
        (events_pb2.Metric(name="7up", boolean=True), "metric.name"),
        (events_pb2.Metric(name="a" * 65, boolean=True), "metric.name"),
        (events_pb2.Metric(name="a\n", boolean=True), "metric.name"),
        (events_pb2.Metric(name="solved"), "metric.value"),
        (events_pb2.Metric(name="seconds", number=float("nan")), "metric.number"),
        (events_pb2.Metric(name="seconds", number=float("-inf")), "metric.number"),
        (events_pb2.Metric(name="seconds", number=1e9), "metric.number"),
    ],
)
def test_a_metric_that_no_gateway_accepts_is_refused(metric: events_pb2.Metric, named: str) -> None:
    message = events_pb2.FeedbackGiven(
        event_id="f", policy="p", tenant="t", user_hash="u", completion_id="c", metric=metric
    )
    with pytest.raises(CorruptData) as caught:
        wire.decode_feedback(message.SerializeToString())
    assert caught.value.param == named


def test_true_is_not_the_number_1() -> None:
    assert Metric(name="solved", value=True) != Metric(name="solved", value=1.0)
    assert Metric(name="solved", value=True) == Metric(name="solved", value=True)
    assert Metric(name="solved", value=1.0) != Thumb(up=True)


def test_feedback_without_judgement_or_value_is_refused() -> None:
    message = events_pb2.FeedbackGiven(
        event_id="f", policy="p", tenant="t", user_hash="u", completion_id="c"
    )
    with pytest.raises(CorruptData, match="judgement"):
        wire.decode_feedback(message.SerializeToString())
    message.thumb.SetInParent()
    with pytest.raises(CorruptData, match=r"thumb\.value"):
        wire.decode_feedback(message.SerializeToString())


def test_weights_reference_needs_every_part() -> None:
    with pytest.raises(CorruptData, match="uri"):
        wire.weights_from_proto(generation_pb2.WeightsReference(policy="p", policy_version=1))


@given(st.lists(st.integers(0, 3), max_size=30))
def test_merged_spans_cover_the_tokens(versions: list[int]) -> None:
    spans = merge_spans(versions)
    expanded = [s.policy_version for s in spans for _ in range(s.end - s.start)]
    assert expanded == versions
    protos = wire.spans_to_proto(spans)
    assert wire.spans_from_proto(protos, len(versions)) == spans
    neighbours = list(itertools.pairwise(spans))
    assert all(a.policy_version != b.policy_version for a, b in neighbours)


def test_finish_reasons_map_one_to_one() -> None:
    assert len(wire.finish_reason_from_proto) == len(FinishReason)
    assert rollout_pb2.FINISH_REASON_UNSPECIFIED not in wire.finish_reason_from_proto


def signal(kind: SignalKind = SignalKind.COPIED, distance: float | None = None) -> Signal:
    return Signal(
        signal_id="sg-1",
        kind=kind,
        policy="tuneloop",
        tenant="default",
        user_hash="abc",
        completion_id="chatcmpl-1",
        accepted_time=WHEN,
        distance=distance,
        metadata={"place": "inbox"},
        api_key_id="k1",
        traceparent="00-1-2-01",
    )


@pytest.mark.parametrize("kind", SignalKind)
def test_signal_round_trip(kind: SignalKind) -> None:
    given = signal(kind, 0.25 if kind is SignalKind.EDITED else None)
    back = wire.decode_signal(wire.encode_signal(given))
    assert back == given
    assert (back.api_key_id, back.traceparent) == ("k1", "00-1-2-01")


def test_the_event_of_a_signal_is_its_users_own() -> None:
    ann, bob = signal(), replace(signal(), user_hash="def")
    assert wire.signal_event_id(ann) != wire.signal_event_id(bob)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"event_id": ""}, "event_id"),
        ({"completion_id": ""}, "completion_id"),
        ({"user_hash": ""}, "user_hash"),
        ({"kind": "liked"}, "kind"),
        ({"kind": "complained"}, "kind"),
        ({"kind": "copied", "distance": 0.5}, "distance"),
        ({"kind": "edited", "distance": 1.5}, "distance"),
        ({"kind": "edited", "distance": float("nan")}, "distance"),
    ],
)
def test_a_bad_signal_names_its_field(change: dict[str, object], field: str) -> None:
    message = events_pb2.SignalGiven.FromString(wire.encode_signal(signal()))
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(CorruptData, match=field) as refusal:
        wire.decode_signal(message.SerializeToString())
    assert refusal.value.param == field


def test_an_edit_says_how_much_it_changed() -> None:
    message = events_pb2.SignalGiven.FromString(wire.encode_signal(signal()))
    message.kind = "edited"
    with pytest.raises(CorruptData, match="distance"):
        wire.decode_signal(message.SerializeToString())
