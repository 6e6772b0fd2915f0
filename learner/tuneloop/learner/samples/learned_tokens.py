"""Samples in the form that a step learns from: at which temperature, and which of their tokens.

A model that reasons writes its thought before its answer. A judgement is of the answer, the only
part that its user is sure to have read. So preferences and imitation teach the answer alone. The
thought then counts to the prompt: it is read as it was sampled, and no loss, log-prob, KL or length
counts it. A policy gradient credits everything that led to the reward, the thought included.
"""

from dataclasses import replace
from typing import Any, Literal

from tuneloop.learner.samples import (
    CommentedSample,
    DemonstrationSample,
    PairSample,
    ScoredGroup,
    ScoredSample,
    ThumbSample,
    TokenSequence,
)

LearnThoughts = Literal["policy_gradient", "always", "never"]
"""Which samples teach the thoughts of a reasoning model."""


def at_temperature_one(sequence: TokenSequence) -> TokenSequence:
    """Return a judged sequence as preferences compare it: at temperature 1, as TRL does.

    A gradient grows with 1/temperature: at the request's own, an answer sampled at 0.02 would
    outvote its batch.
    """
    if sequence.temperature == 1.0:
        return sequence
    return replace(sequence, temperature=1.0, generation_logprobs=(), ref_logprobs=())


def after_thought(sequence: TokenSequence) -> TokenSequence:
    """Return the answer alone as the completion; its thought ends the prompt.

    The completion of an answer that was cut off in its thought is empty.
    """
    count = sequence.reasoning_tokens
    if not count:
        return sequence
    return replace(
        sequence,
        prompt_token_ids=sequence.prompt_token_ids + sequence.completion_token_ids[:count],
        completion_token_ids=sequence.completion_token_ids[count:],
        generation_logprobs=sequence.generation_logprobs[count:],
        ref_logprobs=sequence.ref_logprobs[count:],
        reasoning_tokens=0,
        thought_read=count,
    )


def as_learned(sample: Any, learn_thoughts: LearnThoughts) -> Any:
    """Return a sample as a step learns from it; a reward model's, which is text, as it is.

    Preferences and demonstrations are at temperature 1, scored completions at their own.
    """
    if isinstance(sample, ScoredGroup):
        members = tuple(as_learned(member, learn_thoughts) for member in sample.samples)
        return replace(sample, samples=members)
    is_learned = teaches_thought(sample, learn_thoughts)

    def learned(sequence: TokenSequence) -> TokenSequence:
        if not isinstance(sample, ScoredSample):
            sequence = at_temperature_one(sequence)
        return sequence if is_learned else after_thought(sequence)

    match sample:
        case PairSample(chosen=chosen, rejected=rejected):
            return replace(sample, chosen=learned(chosen), rejected=learned(rejected))
        case CommentedSample():
            return _commented(sample, learned(sample.sequence))
        case ThumbSample() | DemonstrationSample() | ScoredSample():
            return replace(sample, sequence=learned(sample.sequence))
    return sample


def teaches_thought(sample: Any, learn_thoughts: LearnThoughts) -> bool:
    """Return whether a step learns the thoughts of a sample.

    By default a thought that somebody wrote to be imitated is learned: it is a demonstration.
    """
    if learn_thoughts != "policy_gradient":
        return learn_thoughts == "always"
    is_shown = isinstance(sample, DemonstrationSample) and sample.shows_thought
    return is_shown or isinstance(sample, ScoredSample)


def _commented(sample: CommentedSample, learned: TokenSequence) -> CommentedSample:
    """Return a commented answer with what is learned of it; its teacher reads the thought too."""
    moved = learned.prompt_token_ids[len(sample.sequence.prompt_token_ids) :]
    hinted = sample.hinted_prompt_token_ids + moved
    return replace(sample, sequence=learned, hinted_prompt_token_ids=hinted)
