"""What holds the policy where nobody judged it: the base model's own answers to plain prompts.

Learning a taste moves the policy everywhere, and what it answered well before is forgotten. Each
step therefore carries the forward KL divergence to the base model, KL(π_ref ‖ π), over the first
tokens of the base model's own answers to a few *anchor prompts*. It is the online kin of the
pre-training loss in Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, section 3.5 (PPO-ptx).
The end of an answer is not held: there a taste for short answers wants to move it.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from tuneloop.errors import SettingsError, TuneloopError
from tuneloop.learner.data.prompt_rows import prompt_rows
from tuneloop.learner.data.table import read_file
from tuneloop.learner.data.tokenize import PromptTokenizer, without_end
from tuneloop.learner.losses.means import Mean, mean_over
from tuneloop.learner.models.batch import collate
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.objectives.base import Plan, cut
from tuneloop.learner.samples import DemonstrationSample, SampledAnswer, TokenSequence
from tuneloop.learner.trainer.gradient_step import MicroLoss
from tuneloop.learner.trainer.settings import TrainerSettings

BUILT_IN = Path(__file__).with_name("anchors.jsonl")
HELD_TOKENS = 16
"""Tokens of an answer that are held."""
TOGETHER = 16
"""The fewest prompts answered at once: where judgements come one by one a step takes one anchor,
and sixteen answers take half as long again as four."""


Answer = Callable[[Sequence[Sequence[int]], int], Sequence[SampledAnswer]]
"""Returns the base model's greedy answers to prompts (token ids), of so many tokens at most."""


class Anchors:
    """The anchor prompts and, as they come to be used, the base model's answers to them."""

    def __init__(
        self, prompts: Sequence[tuple[int, ...]], *, answer: Answer, ends: frozenset[int], seed: int
    ) -> None:
        """Take the prompts' token ids, which `seed` puts in order, and tokens that end answers."""
        self._answer = answer
        self._ends = ends
        self._prompts = list(prompts)
        random.Random(seed).shuffle(self._prompts)  # noqa: S311 - not cryptographic
        self._answers: dict[int, tuple[int, ...]] = {}

    def sequences(self, start: int, count: int) -> list[TokenSequence]:
        """Return `count` anchors from number `start`, over and over; each held at its start."""
        numbers = [number % len(self._prompts) for number in range(start, start + count)]
        missing = sorted({number for number in numbers if number not in self._answers})
        if missing:
            missing += self._next_after(missing[-1], TOGETHER - len(missing))
            answers = self._answer([self._prompts[number] for number in missing], HELD_TOKENS)
            for number, answer in zip(missing, answers, strict=True):
                self._answers[number] = without_end(answer.token_ids, self._ends)
        return [
            TokenSequence(
                prompt_token_ids=self._prompts[number],
                completion_token_ids=self._answers[number],
                generation_logprobs=(),
                temperature=1.0,
            )
            for number in numbers
            if self._answers[number]
        ]

    def _next_after(self, number: int, count: int) -> list[int]:
        """Return up to `count` of the next anchors without an answer."""
        following = range(number + 1, len(self._prompts))
        return [n for n in following if n not in self._answers][: max(0, count)]


def load_anchors(
    folder: Path, settings: TrainerSettings, max_length: int, answer: Answer
) -> Anchors:
    """Return the anchors of a file, or our own: those prompts that fit the model's `max_length`.

    Raises `SettingsError` if they cannot be used with the model in `folder`.
    """
    tokens = PromptTokenizer(folder, max_length=None, as_chat=None)
    try:
        table = read_file(Path(settings.anchor_prompts or BUILT_IN), "anchor prompts")
        rows = prompt_rows(table, tokens, 0, reader="anchor_prompts")
    except TuneloopError as error:
        raise SettingsError(f"anchor_prompts: {error.message}", param="anchor_prompts") from error
    found = [row.asked.token_ids for row in rows]
    fitting = [prompt for prompt in found if len(prompt) + HELD_TOKENS <= max_length]
    if not fitting:
        raise SettingsError(
            f"anchor_prompts: none fits the model's {max_length} tokens", param="anchor_prompts"
        )
    ends = tokens.tokenization.stop_token_ids
    return Anchors(fitting, answer=answer, ends=ends, seed=settings.seed)


def plan_anchors(
    model: PolicyModel, sequences: Sequence[TokenSequence], settings: TrainerSettings
) -> Plan:
    """Plan the loss on anchors: the mean over their tokens of KL(π_ref ‖ π)."""
    samples = [DemonstrationSample(sample_id="", sequence=s) for s in sequences]
    tokens = sum(len(s.completion_token_ids) for s in sequences)
    groups = cut(samples, settings)
    return Plan(
        micro_losses=[_micro_loss(model, [s.sequence for s in group], tokens) for group in groups],
        tokens=tokens,
    )


def _micro_loss(model: PolicyModel, sequences: Sequence[TokenSequence], tokens: int) -> MicroLoss:
    def run() -> tuple[Tensor, dict[str, Mean]]:
        batch = collate(sequences, model.device)
        _, divergences = model.logprobs_and_divergences(batch, of_policy=False)
        loss = divergences.sum() / tokens
        return loss, {"anchor_kl": mean_over(divergences, batch.loss_mask)}

    return run
