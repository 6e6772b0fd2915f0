"""Answers to the gate's prompts, and what can be measured without a judge."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneloop.learner.release.gate.suites import SuiteComparison
from tuneloop.learner.samples import SampledAnswer
from tuneloop.learner.stats.paired import PairedDifference
from tuneloop.learner.stats.repetition import repetition

TEMPLATE = re.compile(r"<\|\w+\|>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>")
"""Markers that chat templates put around turns; in an answer they mean a broken template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Figures of a version's answers, each a mean over the prompts."""

    answers: int
    length: float
    """Of answers, in tokens."""
    repetition: float
    """Share of 4-grams of an answer that occurred in it before."""
    empty: float
    """Share of answers without a visible character, those that were cut off in their thought among
    them."""
    leaked: float
    """Share of answers with tokens of the chat template."""
    kl: float | None
    """KL to the base model per token, on its own answers; None if it was measured better (see
    `GateMeasurements.kl`), or nothing could be compared.

    The answers are greedy, not sampled, so this says how sure the version is of what the base model
    would not say. It is large far from the base model, and may be below 0 close to it.
    """
    thought_length: float = 0.0
    """Of the thoughts before the answers, in tokens."""
    thought_repetition: float = 0.0
    cut_thoughts: float = 0.0
    """Share of answers that are a thought and nothing else."""


def measure(
    answers: Sequence[SampledAnswer],
    reference_logprobs: Sequence[Sequence[float]],
    special_ids: Collection[int],
) -> Measures:
    """Measure one answer or more.

    `reference_logprobs` are the base model's, () where unknown; none to leave the KL out.
    """
    count = len(answers)
    thoughts = [answer.token_ids[: answer.reasoning_tokens] for answer in answers]
    said = [answer.token_ids[answer.reasoning_tokens :] for answer in answers]
    return Measures(
        answers=count,
        length=math.fsum(map(len, said)) / count,
        repetition=math.fsum(map(repetition, said)) / count,
        empty=sum(not answer.text.strip() for answer in answers) / count,
        leaked=sum(leaks(answer, special_ids) for answer in answers) / count,
        kl=_kl(answers, reference_logprobs) if reference_logprobs else None,
        thought_length=math.fsum(map(len, thoughts)) / count,
        thought_repetition=math.fsum(map(repetition, thoughts)) / count,
        cut_thoughts=sum(bool(t) and not s for t, s in zip(thoughts, said, strict=True)) / count,
    )


def leaks(answer: SampledAnswer, special_ids: Collection[int]) -> bool:
    """Return whether tokens of the template occur in it, after its thought, before its end."""
    inside = answer.token_ids[answer.reasoning_tokens : -1]
    return any(token in special_ids for token in inside) or bool(TEMPLATE.search(answer.text))


def _kl(
    answers: Sequence[SampledAnswer], reference_logprobs: Sequence[Sequence[float]]
) -> float | None:
    """Return the mean of log π − log π_ref over the tokens of all answers."""
    differences = [
        sampled - reference
        for answer, references in zip(answers, reference_logprobs, strict=True)
        if references
        for sampled, reference in zip(answer.logprobs, references, strict=True)
    ]
    return math.fsum(differences) / len(differences) if differences else None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateMeasurements:
    """Everything the gate measured."""

    change: float
    """Norm of the change as a share of that of the base weights changed."""
    change_norm: float
    stable_version: int
    kl: float | None = None
    """KL to version 0 in nats per token, exact over the vocabulary, on answers of the trainer to
    prompts that stay the same; None if it was not measured."""
    stable_kl: float | None = None
    """The same of the stable version."""
    evidence: float = 0.0
    """What it learned from since the stable version, in full steps."""
    suites: Sequence[SuiteComparison] = ()
    items: Mapping[str, Any] = field(default_factory=dict)
    """The values of each suite's items."""
    candidate: Measures | None = None
    """None if nothing was sampled: the suites had decided."""
    stable: Measures | None = None
    same_answers: bool = False
    """Whether the stable version gave every answer in the same tokens."""
    reward: PairedDifference | None = None
    """None while no scorer is informative, and for the same answers."""
    rewards: Mapping[str, Any] = field(default_factory=dict)
    """The scorers of each pair, by name `candidate` and `stable`."""
