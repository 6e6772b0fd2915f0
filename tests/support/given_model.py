"""A policy that answers with log-probs and values it was given, for tests of plans."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tuneloop.learner.models.batch import SequenceBatch
from tuneloop.learner.samples import TokenSequence


class GivenModel:
    """Stands in for `PolicyModel`; tensors are (N, C), one row for each of N known completions.

    While planning it answers with `old`, afterwards with `policy` and `values`, which take
    gradients.
    """

    device = torch.device("cpu")
    max_length = 1 << 20

    def __init__(
        self,
        completions: Sequence[TokenSequence],
        *,
        old: Tensor,
        policy: Tensor,
        reference: Tensor,
        old_values: Tensor | None = None,
        values: Tensor | None = None,
    ) -> None:
        self._row_of = {s.completion_token_ids: row for row, s in enumerate(completions)}
        assert len(self._row_of) == len(completions)
        self._old, self._old_values = old, old_values
        self._reference = reference
        self.policy = policy.clone().requires_grad_()
        self.values = None if values is None else values.clone().requires_grad_()
        self.reference_passes = 0
        self.policy_passes: set[TokenSequence] = set()
        """Sequences the policy was asked for."""

    def logprobs(self, batch: SequenceBatch) -> Tensor:
        self.policy_passes.update(batch.sequences)
        return self._of(batch, self.policy if torch.is_grad_enabled() else self._old)

    def logprobs_and_values(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        values = self.values if torch.is_grad_enabled() else self._old_values
        assert values is not None
        return self.logprobs(batch), self._of(batch, values)

    def reference_logprobs(self, batch: SequenceBatch) -> Tensor:
        self.reference_passes += 1
        return self._of(batch, self._reference)

    def _of(self, batch: SequenceBatch, table: Tensor) -> Tensor:
        rows = [self._row_of[s.completion_token_ids] for s in batch.sequences]
        width = batch.loss_mask.shape[1]
        return torch.where(batch.loss_mask, table[rows][:, :width], 0.0)


def total_loss(plan: Any) -> Tensor:
    """The loss of a whole plan; leaves gradients behind."""
    total = torch.zeros(())
    for micro_loss in plan.micro_losses:
        loss, _ = micro_loss()
        loss.backward()
        total = total + loss.detach()
    return total
