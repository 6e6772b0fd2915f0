"""What each objective learns from: one frozen type for each. Standard library only.

The ledger makes them, batching turns them into tensors. `sample_id` is what the accounting of uses
is kept by: a feedback id, or a completion id for scored rollouts.

`weight` says what a sample counts beside others: a loss is divided by the weights of its batch.
`trust`, 0 to 1, is how much of that counts (see `guards`); no loss is divided by it, so that a
batch of distrusted samples makes a small step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

from tuneloop.errors import InvalidRequest


class Objective(StrEnum):
    """What a sample is for: the name that ledger rows, manifests and metrics carry.

    An objective says what a sample is; an algorithm (`trainer.algorithms`) how it is learned from.
    """

    SFT = "sft"
    """Demonstrations."""
    KTO = "kto"
    """Thumbs."""
    DPO = "dpo"
    """Pairs of a chosen and a rejected completion."""
    SDFT = "sdft"
    """Completions that a user commented on in words."""
    PPO = "ppo"
    """Scored completions."""
    GRPO = "grpo"
    """Scored completions, grouped by prompt."""
    REWARD_MODEL = "reward_model"
    """Labels, preferences, ratings and rankings for the reward model."""
    SIGNALS = "signals"
    """What users did with answers, for the reward model: what nobody said is kept apart."""


class ModelRole(StrEnum):
    """The models that learn."""

    POLICY = "policy"
    REWARD_MODEL = "reward_model"


class SampleState(StrEnum):
    """What has become of a sample, as the ledger stores it."""

    OPEN = "open"
    """May be learned from."""
    USED = "used"
    """A committed step learned from it."""
    SUPERSEDED = "superseded"
    """The user gave a later verdict on the same thing."""
    RETRACTED = "retracted"
    """The user took it back."""
    EXPIRED = "expired"
    """Too old to learn from."""
    STALE = "stale"
    """Sampled by a version that is too old."""
    REFUSED = "refused"
    """Can never be trained on."""
    SET_ASIDE = "set_aside"
    """Led to several quarantines."""


JUDGED_OBJECTIVES: tuple[str, ...] = (Objective.DPO, Objective.KTO, Objective.SFT, Objective.SDFT)
"""The policy's from what users say, in the order in which they fill a batch."""
SCORED_OBJECTIVES: tuple[str, ...] = (Objective.PPO, Objective.GRPO)
"""The policy's from its own completions and their rewards."""
Tokens = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a prompt and of a completion."""
REWARD_OBJECTIVES: tuple[str, ...] = (Objective.REWARD_MODEL, Objective.SIGNALS)
"""The reward model's."""
POLICY_OBJECTIVES = tuple(o for o in Objective if o not in REWARD_OBJECTIVES)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSequence:
    """A prompt and one completion of it, as token ids."""

    prompt_token_ids: tuple[int, ...]
    completion_token_ids: tuple[int, ...]
    generation_logprobs: tuple[float, ...]
    """The sampler's log-prob of each completion token; empty for text no policy sampled."""
    temperature: float
    """The temperature it was sampled at; log-probs are compared at the same one. 1 if unknown."""
    ref_logprobs: tuple[float, ...] = ()
    """The reference policy's log-prob of each completion token at that temperature; empty where it
    has not been computed yet."""
    reasoning_tokens: int = 0
    """The first tokens of the completion that are its thought, delimiters included."""
    thought_read: int = 0
    """The last tokens of the prompt that are the completion's thought: see `learned_tokens`."""


class Reference(NamedTuple):
    """What the reference policy makes of a completion; empty where it cannot score it."""

    logprobs: tuple[float, ...] = ()
    """Of its tokens, at its temperature."""
    features: tuple[float, ...] = ()
    """Numbers that say what it is like."""


def tokens_of(sequence: TokenSequence) -> Tokens:
    """Return what tells a sequence from others, whatever is known of its log-probs."""
    return sequence.prompt_token_ids, sequence.completion_token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationSample:
    """SFT: an answer as it should be."""

    sample_id: str
    sequence: TokenSequence
    shows_thought: bool = False
    """Whether its thought is as it should be too, and not one that the policy had."""
    weight: float = 1.0
    trust: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ThumbSample:
    """KTO: one completion and whether it was desirable."""

    sample_id: str
    sequence: TokenSequence
    desirable: bool
    weight: float = 1.0
    trust: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSample:
    """DPO: a chosen and a rejected completion of one prompt."""

    sample_id: str
    chosen: TokenSequence
    rejected: TokenSequence
    flip_rate: float = 0.0
    """Probability that the preference is the wrong way round, from the agreement of raters."""
    weight: float = 1.0
    trust: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CommentedSample:
    """SDFT: a completion, and its prompt with a user's comment in it as a hint."""

    sample_id: str
    sequence: TokenSequence
    hinted_prompt_token_ids: tuple[int, ...]
    weight: float = 1.0
    trust: float = 1.0

    @property
    def hinted(self) -> TokenSequence:
        """The same completion after the prompt with the hint, as the teacher reads it."""
        prompt = self.hinted_prompt_token_ids
        alone = replace(self.sequence, generation_logprobs=(), ref_logprobs=())
        return replace(alone, prompt_token_ids=prompt)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredSample:
    """PPO: a completion, its reward and how old its policy was."""

    sample_id: str
    sequence: TokenSequence
    reward: float
    policy_version: int
    """The oldest version that sampled a token of it."""
    stopped: bool
    """True when the completion ended at its end-of-turn token or a stop string."""
    weight: float = 1.0
    trust: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """GRPO: several scored completions of one prompt; or one alone, with a baseline from outside.

    The reward of a completion that could not be scored is NaN: it is left out, not scored 0.
    """

    sample_id: str
    samples: tuple[ScoredSample, ...]
    baseline: float | None = None
    """What to expect of this kind of prompt; None takes the group's own mean."""
    cut_share: float = 0.0
    """Of the completions behind `baseline`, the share that ran into their length limit. They are
    charged for it like any other, and `baseline` with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledText:
    """Reward model, binary cross-entropy: a prompt, an answer and whether it was desirable."""

    sample_id: str
    prompt: str
    completion: str
    desirable: bool
    weight: float = 1.0
    trust: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalledText:
    """Reward model, cross-entropy: an answer that nobody judged, and what its user did with it."""

    sample_id: str
    prompt: str
    completion: str
    chance: float
    """Of a thumb up, by what its user did; between 0 and 1."""
    weight: float = 1.0
    trust: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferredText:
    """Reward model, Bradley–Terry: two answers of one prompt."""

    sample_id: str
    prompt: str
    chosen: str
    rejected: str
    margin: float = 0.0
    weight: float = 1.0
    trust: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedText:
    """Reward model, regression: a prompt, an answer and its rating."""

    sample_id: str
    prompt: str
    completion: str
    rating: float
    """In standard deviations from the mean of the user's ratings."""
    weight: float = 1.0
    trust: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedText:
    """Reward model: answers of one prompt, best first."""

    sample_id: str
    prompt: str
    completions: tuple[str, ...]
    weight: float = 1.0
    trust: float = 1.0


JudgedSample = DemonstrationSample | ThumbSample | PairSample | CommentedSample
PolicySample = JudgedSample | ScoredSample | ScoredGroup
RewardSample = LabelledText | SignalledText | PreferredText | RatedText | RankedText

sample_types: Mapping[str, type] = {
    Objective.SFT: DemonstrationSample,
    Objective.KTO: ThumbSample,
    Objective.DPO: PairSample,
    Objective.SDFT: CommentedSample,
    Objective.PPO: ScoredSample,
    Objective.GRPO: ScoredGroup,
}
"""The type of the samples of each of the policy's objectives."""


def check_type(objective: str, sample: PolicySample) -> None:
    """Raise `InvalidRequest`, `param` the sample's id, if it is not of the objective's type."""
    consumed = sample_types.get(objective)
    if consumed is None:
        raise InvalidRequest(f"objective {objective!r} is none of {', '.join(sample_types)}")
    if not isinstance(sample, consumed):
        raise InvalidRequest(
            f"sample {sample.sample_id}: {objective} learns from {consumed.__name__}, "
            f"not {type(sample).__name__}",
            param=sample.sample_id,
        )


def sequences_of(sample: PolicySample | RewardSample) -> tuple[TokenSequence, ...]:
    """Return the token sequences of a sample; none of a reward model's, which is text.

    What a teacher reads is none of them.
    """
    match sample:
        case PairSample():
            return (sample.chosen, sample.rejected)
        case DemonstrationSample() | ThumbSample() | CommentedSample() | ScoredSample():
            return (sample.sequence,)
        case ScoredGroup():
            return tuple(scored.sequence for scored in sample.samples)
    return ()


def with_ref_logprobs(sample: Any, find: Callable[[TokenSequence], tuple[float, ...]]) -> Any:
    """Return the sample with `ref_logprobs` set to what `find` returns for each sequence.

    `find` is called once for each of `sequences_of(sample)`, in that order; () stands for unknown.
    """

    def filled(sequence: TokenSequence) -> TokenSequence:
        return replace(sequence, ref_logprobs=find(sequence))

    match sample:
        case PairSample():
            return replace(sample, chosen=filled(sample.chosen), rejected=filled(sample.rejected))
        case DemonstrationSample() | ThumbSample() | CommentedSample() | ScoredSample():
            return replace(sample, sequence=filled(sample.sequence))
        case ScoredGroup():
            members = tuple(with_ref_logprobs(scored, find) for scored in sample.samples)
            return replace(sample, samples=members)
    return sample


class GreedyPrompt(NamedTuple):
    """A prompt to be answered greedily."""

    token_ids: tuple[int, ...]
    max_tokens: int
    is_measured: bool = False
    """Whether the answer's divergences are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledAnswer:
    """A version's answer to one prompt."""

    text: str
    """Without its thought."""
    token_ids: tuple[int, ...]
    """With its thought, and with the token that ended it, if one did."""
    logprobs: tuple[float, ...]
    """As sampled; one for each token."""
    reasoning_tokens: int = 0
    """The first tokens that are its thought, delimiters included."""
    divergences: tuple[float, ...] = ()
    """KL(π ‖ π_ref) before each token, in nats; () where it was not asked for."""
