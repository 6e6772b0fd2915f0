"""Links between spans: from the intake of events to the step that used them and its version.

They are kept in memory, and only so many: events from before the last start, or from long ago, are
not linked. Only used while tracing is on.

Feedback is also told as `gen_ai.evaluation.result`, OpenTelemetry's event for a judgement of an
answer: a span in the answer's trace, if that is known, else in the feedback's own.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tuneloop import tracing
from tuneloop.feedback import (
    Comparison,
    Demonstration,
    Feedback,
    Metric,
    Ranking,
    Rating,
    Thumb,
)
from tuneloop.learner.batching.batch import Batch, ids_of
from tuneloop.policies import Activation
from tuneloop.rollouts import Rollout, ScoredRollout

EVENTS = 10_000
VERSIONS = 100
LINKS = 128
"""The default limit of links in a span."""

_events: OrderedDict[str, tuple[str, ...]] = OrderedDict()
"""By feedback or completion id: the spans of its intake."""
_steps: dict[str, list[str]] = {}
"""By model: the spans of steps since its last version."""
_versions: OrderedDict[tuple[str, int], str] = OrderedDict()


def clear_links() -> None:
    """Drop all links."""
    for kept in (_events, _steps, _versions):
        kept.clear()


def link_intake(events: Iterable[Any], started_ns: int) -> None:
    """Emit the spans of events that were just recorded."""
    for event in events:
        match event:
            case (Feedback() as feedback, int()):
                completions = [s for c in feedback.completion_ids for s in _events.get(c, ())]
                about = {"tuneloop.feedback_id": feedback.feedback_id}
                made = _emit("take in feedback", feedback.traceparent, started_ns, about)
                _keep(_events, feedback.feedback_id, (*made, *completions), EVENTS)
                _emit_evaluations(feedback, made, started_ns)
            case [Rollout() as first, *_]:
                about = {"gen_ai.response.id": first.completion_id}
                made = _emit("take in rollout", first.traceparent, started_ns, about)
                for rollout in event:
                    _keep(_events, rollout.completion_id, made, EVENTS)
            case ScoredRollout():
                earlier = _events.get(event.completion_id, ())
                about = {"gen_ai.response.id": event.completion_id}
                made = _emit("take in score", event.traceparent, started_ns, about)
                _keep(_events, event.completion_id, (*earlier, *made), EVENTS)
            case Activation():
                _emit("take in activation", event.traceparent, started_ns)
            case _:
                """A retraction: nothing is learned from it."""


def links_of_batch(batch: Batch) -> list[str]:
    """Return the spans that the step of a batch comes from."""
    ids = (i for group in batch.samples.values() for sample in group for i in ids_of(sample))
    # A sample is named after its feedback, whose id has no dot, or after its completion.
    found = (_events.get(i) or _events.get(i.partition(".")[0], ()) for i in ids)
    return list(dict.fromkeys(span for spans in found for span in spans))[:LINKS]


def note_step(model: str) -> None:
    """Record the current span as that of a step."""
    span = tracing.traceparent()
    if span:
        _steps.setdefault(model, []).append(span)


def steps_of(model: str) -> list[str]:
    """Return and drop the spans of the steps of the version that is being made."""
    return _steps.pop(model, [])


def note_version(model: str, version: int) -> None:
    """Record the current span as that in which a version was made."""
    span = tracing.traceparent()
    if span:
        _keep(_versions, (model, version), span, VERSIONS)


def span_of_version(model: str, version: int) -> str:
    """Return the span in which a version was made; empty if unknown."""
    return _versions.get((model, version), "")


def evaluations_of(feedback: Feedback) -> Iterator[tuple[str, dict[str, str | float]]]:
    """Yield each completion that feedback judges, empty for a session, and the verdict on it.

    A score is a number of the feedback's own scale; of thumbs and comparisons 1 is good and 0 is
    bad, of rankings 1 is the best, 0 the last, and the others lie evenly between.
    """
    value, label = "gen_ai.evaluation.score.value", "gen_ai.evaluation.score.label"
    about = feedback.completion_id
    match feedback.judgement:
        case Thumb(up=up):
            yield about, {value: float(up), label: "up" if up else "down"}
        case Rating(value=rated):
            yield about, {value: rated}
        case Metric(value=bool() as measured):
            yield about, {value: float(measured), label: str(measured).lower()}
        case Metric(value=measured):
            yield about, {value: measured}
        case Comparison(chosen=chosen, rejected=rejected):
            yield chosen, {value: 1.0, label: "chosen"}
            for completion_id in rejected:
                yield completion_id, {value: 0.0, label: "rejected"}
        case Ranking(completion_ids=ids):
            for place, completion_id in enumerate(ids):
                yield completion_id, {value: 1 - place / max(1, len(ids) - 1)}
        case Demonstration():
            yield about, {label: "edited"}
        case _:
            yield about, {}


def _emit_evaluations(feedback: Feedback, taken_in: Sequence[str], started_ns: int) -> None:
    judgement = feedback.judgement
    name = judgement.name if isinstance(judgement, Metric) else feedback.kind.value
    for completion_id, verdict in evaluations_of(feedback):
        about = (
            {"gen_ai.response.id": completion_id}
            if completion_id
            else {"gen_ai.conversation.id": feedback.session_id}
        )
        answer = next(filter(tracing.is_sampled, _events.get(completion_id, ())), "")
        tracing.emit(
            "gen_ai.evaluation.result",
            parent=answer or next(iter(taken_in), ""),
            links=taken_in if answer else (),
            started_ns=started_ns,
            attributes={
                **tracing.PROVIDER,
                "gen_ai.evaluation.name": name,
                "tuneloop.feedback_id": feedback.feedback_id,
                **about,
                **verdict,
            },
        )


def _emit(
    name: str, parent: str, started_ns: int, attributes: tracing.Attributes | None = None
) -> Sequence[str]:
    span = tracing.emit(
        name, kind="consumer", parent=parent, started_ns=started_ns, attributes=attributes
    )
    return (span,) if span else ()


def _keep(kept: OrderedDict[Any, Any], key: Any, value: Any, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
