"""One pass of a model over a batch, as a module, so that FSDP can shard all of it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tuneloop.learner.models.architecture import run_body, run_whole
from tuneloop.learner.models.batch import SequenceBatch, collate
from tuneloop.learner.models.lm_head import float32_logits, logprobs_of_logits, token_logprobs
from tuneloop.learner.models.packing import send
from tuneloop.learner.models.prefix_tree import tree_batch
from tuneloop.learner.models.softmax.logits import LogitTransform, transformed
from tuneloop.learner.models.world import World, shard_sequences
from tuneloop.learner.samples import Tokens, TokenSequence, tokens_of

HALF_ON = {"cuda"}
"""Kinds of devices that compute in bfloat16."""
FEATURES = 64
"""Numbers that say what a completion is like."""


class ForwardOutput(NamedTuple):
    """What one pass over a batch gives; N completion tokens."""

    logprobs: Tensor  # (N,)
    hidden: Tensor  # (N, H)
    entropies: Tensor  # (N,), or empty where they were not asked for
    distributions: Tensor | None = None  # (N, V) log-probs of every token at temperature 1


class RankShard(NamedTuple):
    """The sequences of a batch that a rank runs."""

    batch: SequenceBatch
    places: Tensor | None
    """(n,) int64: where their targets stand among those of the whole batch; fewer than the targets
    where a rank has no share and runs a sequence for nothing. None: the whole batch."""

    def of(self, whole: SequenceBatch, other: SequenceBatch | None) -> SequenceBatch:
        """Return the rank's share of `other`, the rows in place of its rows of `whole`."""
        if other is None or self.places is None:
            return other or self.batch
        partners = {id(one): two for one, two in zip(whole.sequences, other.sequences, strict=True)}
        return collate([partners[id(s)] for s in self.batch.sequences], other.targets.device)


class Forward(nn.Module):
    """A causal language model that gives log-probs of completions."""

    def __init__(
        self,
        model: Any,
        transform: LogitTransform | None,
        *,
        packs: bool,
        autocast: bool = True,
    ) -> None:
        """Take what `architecture` found out about the model.

        Without `autocast` its weights come in the precision that it computes in.
        """
        super().__init__()
        self._autocast = autocast
        self.model = model
        self._transform = transform
        self._packs = packs

    def of(self, model: Any) -> "Forward":
        """Return the same of another model of the same family."""
        return Forward(model, self._transform, packs=self._packs, autocast=self._autocast)

    def forward(
        self, batch: SequenceBatch, *, entropies: bool = False, distributions: bool = False
    ) -> ForwardOutput:
        """Run the model over a batch; `distributions` are (N, V): for few tokens only."""
        model = self.model
        layout = batch.packed if self._packs else batch.padded()
        with self._precision(batch.targets.device):
            if self._transform is None:
                logits, hidden = run_whole(model, layout)
                if distributions:
                    return _whole(logits, hidden)
                logprobs, measured = logprobs_of_logits(
                    logits, targets=batch.targets, temperatures=batch.temperatures
                )
            else:
                hidden = run_body(model, layout)[layout.sources]
                if distributions:
                    head = model.get_output_embeddings()
                    logits = float32_logits(head, hidden)
                    return _whole(transformed(logits, self._transform), hidden)
                first = slice(None) if layout.repeats is None else layout.repeats.first
                logprobs, measured = token_logprobs(
                    hidden[first],
                    model.get_output_embeddings(),
                    targets=batch.targets[first],
                    temperatures=batch.temperatures[first],
                    transform=self._transform,
                    entropies=entropies,
                )
                if layout.repeats is not None:
                    logprobs = logprobs[layout.repeats.copies]
                    measured = measured[layout.repeats.copies] if entropies else measured
        return ForwardOutput(logprobs=logprobs, hidden=hidden, entropies=measured)

    def distributions(self, batch: SequenceBatch) -> Tensor:
        """Return (N, V) log-probs of every token before each completion token; see `forward`."""
        found: Tensor = self(batch, distributions=True).distributions
        return found

    def distributions_in(self, hidden: Tensor) -> Tensor:
        """Return the same in states, (N, H), that an earlier pass gave."""
        assert self._transform is not None
        with self._precision(hidden.device):
            logits = float32_logits(self.model.get_output_embeddings(), hidden)
            return torch.log_softmax(transformed(logits, self._transform), dim=-1)

    def _precision(self, device: torch.device) -> torch.autocast:
        enabled = self._autocast and device.type in HALF_ON
        return torch.autocast(device.type, torch.bfloat16, enabled=enabled)

    @property
    def has_plain_head(self) -> bool:
        """Whether its head can be asked by itself."""
        return self._transform is not None


class KnownStates:
    """The states in which weights that stay predict completions that come again.

    They are small beside the distributions that the head makes of them, and spare the layers.
    """

    KEPT = 64
    """Completions; the oldest go first."""

    def __init__(self, *, sharded: bool) -> None:
        """Of weights that are `sharded` nothing is kept: every rank has a share of its own."""
        self._sharded = sharded
        self._states: dict[Tokens, Tensor] = {}

    def distributions(self, forward: Forward, batch: SequenceBatch) -> Tensor:
        """Return what `forward.distributions` does."""
        if self._sharded or not forward.has_plain_head:
            return forward.distributions(batch)
        sequences = {tokens_of(sequence): sequence for sequence in batch.sequences}
        missing = [one for name, one in sequences.items() if name not in self._states]
        if missing:
            hidden = forward(tree_batch(missing, batch.targets.device)).hidden
            counts = [len(sequence.completion_token_ids) for sequence in missing]
            names = map(tokens_of, missing)
            self._states.update(zip(names, torch.split(hidden, counts), strict=True))
        states = torch.cat([self._states[tokens_of(sequence)] for sequence in batch.sequences])
        for name in list(self._states)[: -self.KEPT]:
            del self._states[name]
        return forward.distributions_in(states)


def _whole(logits: Tensor, hidden: Tensor) -> ForwardOutput:
    empty = hidden.new_empty(0)
    distributions = torch.log_softmax(logits.float(), dim=-1)
    return ForwardOutput(
        logprobs=empty, hidden=hidden, entropies=empty, distributions=distributions
    )


def projected(hidden: Tensor) -> Tensor:
    """Return (N, `FEATURES`) float32 of hidden states (N, H), by random directions.

    Sums of many states keep their distances so (Johnson and Lindenstrauss 1984), in fewer numbers.
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(hidden.shape[-1], FEATURES, generator=generator)
    states: Tensor = hidden.float() @ (directions / FEATURES**0.5).to(hidden.device)
    return states


def share_of(batch: SequenceBatch, world: World) -> RankShard:
    """Return this rank's share of a batch. A sharded model needs every rank to run something."""
    if world.size == 1:
        return RankShard(batch=batch, places=None)
    rows = shard_sequences(batch.sequences, world.size)[world.rank]
    device = batch.targets.device
    mine = set(rows)
    found: list[int] = []
    first = 0
    for row, sequence in enumerate(batch.sequences):
        after = first + len(sequence.completion_token_ids)
        found.extend(range(first, after) if row in mine else ())
        first = after
    places = send(torch.tensor(found, dtype=torch.int64), device)
    sequences = [batch.sequences[row] for row in rows] or [min(batch.sequences, key=_length)]
    return RankShard(batch=collate(sequences, device), places=places)


def _length(sequence: Any) -> int:
    return len(sequence.prompt_token_ids) + len(sequence.completion_token_ids)


class NotedLogprobs:
    """Log π of completions, kept on the device until they are asked for."""

    def __init__(self) -> None:
        self._kept: dict[Tokens, tuple[TokenSequence, Tensor]] = {}

    def add(self, batch: SequenceBatch, logprobs: Tensor) -> None:
        """Keep the sum of each row of `logprobs`, (B, C), unless the completion has one."""
        for sequence, total in zip(batch.sequences, logprobs.detach().sum(-1), strict=True):
            self._kept.setdefault(tokens_of(sequence), (sequence, total))

    def totals(self) -> dict[Tokens, tuple[TokenSequence, float]]:
        """Return each completion, as it was learned from, with its log-prob."""
        if not self._kept:
            return {}
        values = torch.stack([total for _, total in self._kept.values()]).tolist()
        kept = zip(self._kept.items(), values, strict=True)
        return {tokens: (sequence, value) for (tokens, (sequence, _)), value in kept}
