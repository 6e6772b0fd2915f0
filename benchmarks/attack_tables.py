"""The policy and the reward model of `attack`: tables, trained by the learner's own losses."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuneloop.learner.losses.kto import balanced_weights, class_weights, kto_loss
from tuneloop.learner.losses.means import total_of
from tuneloop.learner.losses.reward_model import thumb_loss
from tuneloop.learner.samples import LabelledText, Reference, ThumbSample, TokenSequence
from tuneloop.learner.trainer.adaptive import ClassBalance
from tuneloop.learner.trainer.base import StepResult

BATCH = 16
"""Thumbs in a full batch."""
BETA = 0.1
POLICY_RATE = 0.1
REWARD_RATE = 0.2
DECAY = 0.999
RAREST = 4.0


class Table:
    """A number for each answer to each prompt, and Adam on it: a `Trainer` for `TrainingRun`."""

    needs_reference: frozenset[str] = frozenset()

    def __init__(self, prompts: int, answers: int, rate: float) -> None:
        self.values = torch.zeros(prompts, answers, requires_grad=True)
        self._rate = rate
        self._optimizer = torch.optim.Adam([self.values], lr=rate)

    def descend(self, loss: Tensor, evidence: float) -> StepResult:
        """One step, of a rate in proportion to what its samples weigh."""
        self._optimizer.zero_grad()
        self._optimizer.param_groups[0]["lr"] = self._rate * min(1.0, evidence)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return StepResult(metrics={"loss": float(loss.detach())})

    def reference_logprobs(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        """Never asked for: the loss of the table has its own."""
        return [() for _ in sequences]

    def references(self, sequences: Sequence[TokenSequence]) -> list[Reference]:
        """A table's answers are like nothing."""
        return [Reference()] * len(sequences)

    def finite(self) -> bool:
        """Whether every number is one."""
        return bool(self.values.isfinite().all())

    def check(self, objective: str, sample: Any) -> None:
        """Everything can be learned from."""

    def stage_checkpoint(self, position: Mapping[str, Any]) -> Callable[[Path], None]:
        """Only that there is one: nothing is resumed here."""

        def write(folder: Path) -> None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / "step.json").write_text(json.dumps(position["step"]))

        return write

    def load_checkpoint(self, folder: Path) -> None:
        """Never asked for."""
        raise NotImplementedError

    def save_weights(self, folder: Path) -> None:
        """Never asked for."""
        raise NotImplementedError


class Policy(Table):
    """Answers at random, each as often as its softmax says; learns by KTO from the uniform one."""

    def __init__(self, prompts: int, answers: int) -> None:
        super().__init__(prompts, answers, POLICY_RATE)
        self._balance = ClassBalance()

    def probabilities(self) -> Tensor:
        """(prompts, answers)."""
        return self.values.detach().softmax(-1)

    def step(self, samples: Mapping[str, Sequence[Any]]) -> StepResult:
        """KTO as `plans.kto` has it, with z = 0."""
        thumbs: list[ThumbSample] = list(samples["kto"])
        self._balance = self._balance.updated(thumbs, DECAY)
        desirable = torch.tensor([s.desirable for s in thumbs])
        weights = torch.tensor([s.weight * s.trust for s in thumbs])
        share = self._balance.desirable_share
        rows = torch.tensor([place_of(s.sequence) for s in thumbs])
        logprobs = self.values.log_softmax(-1)[rows[:, 0], rows[:, 1]]
        loss, _ = kto_loss(
            policy_logps=logprobs,
            ref_logps=torch.full_like(logprobs, -float(torch.log(torch.tensor(self.answers)))),
            desirable=desirable,
            weights=weights * class_weights(desirable, share, limit=RAREST),
            z=torch.zeros(()),
            beta=BETA,
            total_weight=total_of(s.weight for s in thumbs),
        )
        return self.descend(loss, evidence_of(thumbs))

    @property
    def answers(self) -> float:
        """How many answers each prompt has."""
        return float(self.values.shape[1])


class RewardModel(Table):
    """A score for each answer, learned from thumbs."""

    def __init__(self, prompts: int, answers: int) -> None:
        super().__init__(prompts, answers, REWARD_RATE)

    def step(self, samples: Mapping[str, Sequence[Any]]) -> StepResult:
        """As `reward_trainer` learns from thumbs."""
        thumbs: list[LabelledText] = list(samples["reward_model"])
        desirable = torch.tensor([s.desirable for s in thumbs])
        balanced = balanced_weights(desirable, torch.tensor([s.weight for s in thumbs]))
        rows = torch.tensor([[int(n) for n in s.completion.split()] for s in thumbs])
        loss, _ = thumb_loss(
            scores=self.values[rows[:, 0], rows[:, 1]],
            desirable=desirable,
            weights=balanced * torch.tensor([s.trust for s in thumbs]),
            total_weight=total_of(balanced.tolist()),
        )
        return self.descend(loss, evidence_of(thumbs))


def evidence_of(thumbs: Sequence[ThumbSample] | Sequence[LabelledText]) -> float:
    """What a batch weighs, of a full one in which everybody counts in full."""
    return sum(s.weight * s.trust for s in thumbs) / BATCH


def place_of(sequence: TokenSequence) -> tuple[int, int]:
    """Row and column of an answer."""
    return sequence.prompt_token_ids[0], sequence.completion_token_ids[0]
