"""The policy that learns, the reference policy it is held to, and the value head.

With LoRA the reference policy is the base model with the adapter switched off, so there is no
second copy; with full weights it is a frozen copy. Either way it is version 0.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tuneloop.learner.models import weight_files
from tuneloop.learner.models.architecture import (
    checkpoint_layers,
    find_logit_transform,
    layers_of,
    prepare_layers,
    take_packed_rows,
)
from tuneloop.learner.models.batch import SequenceBatch, numbered_batches
from tuneloop.learner.models.decoding.greedy import Likeliest
from tuneloop.learner.models.forward import (
    HALF_ON,
    Forward,
    KnownStates,
    NotedLogprobs,
    RankShard,
    projected,
    share_of,
)
from tuneloop.learner.models.lora import AdapterSwitch, add_adapter
from tuneloop.learner.models.prefix_tree import numbered_rows
from tuneloop.learner.models.world import ALONE, World, gather_into, shard
from tuneloop.learner.samples import Reference, TokenSequence
from tuneloop.models.causal_lm import check_base, load_causal_lm
from tuneloop.models.reward_model import silence_loading
from tuneloop.policies import WeightsKind


class PolicyModel:
    """A causal language model with an adapter or all its weights to train."""

    def __init__(
        self,
        folder: Path,
        *,
        kind: WeightsKind = WeightsKind.LORA,
        lora_rank: int = 16,
        lora_alpha: int = 32,
        seed: int = 0,
        device: str = "cpu",
        packing: bool = True,
        packed_attention: str = "flex",
        gradient_checkpointing: bool | None = False,
        compile: bool | None = False,
        world: World = ALONE,
    ) -> None:
        """Load version 0 from a `save_pretrained` folder; dropout stays off.

        On CPU everything is float32. On a GPU the arithmetic is bfloat16, the softmax float32. An
        adapter and each rank's part of full weights are float32; full weights on one GPU are
        bfloat16, and the optimizer keeps their masters. `TrainerSettings` has what `packing` to
        `compile` do. With several ranks in `world` everything is sharded but the value head.
        """
        self.kind = kind
        self.device = torch.device(device)
        self._folder = folder
        self._world, self._sharded = world, world.size > 1
        self._reference: Forward | None = None
        self._reference_states = KnownStates(sharded=self._sharded)
        self._gathered: Any = None
        self._noted: NotedLogprobs | None = None
        self._lora = (lora_rank, lora_alpha, seed)
        self.lora_rank = lora_rank if kind is WeightsKind.LORA else None
        self._adapted: Any = None
        self._adapter: AdapterSwitch | None = None
        check_base(folder, kind, ranks=world.size)
        self._model = self._load()
        self.text_config = self._model.config.get_text_config()
        self.packs = packing and take_packed_rows(self._model, packed_attention)
        """Whether the model is given packed rows."""
        transform = find_logit_transform(self._model)
        if kind is WeightsKind.LORA:
            self._adapted = add_adapter(self._model, *self._lora)
            self._adapter = AdapterSwitch(self._adapted)
        self.checkpoints, self.selects_layers = prepare_layers(
            self._model, self.device, compile=compile, checkpointing=gradient_checkpointing
        )
        # Full weights are in bfloat16, or brought together in it, so nothing is left to cast.
        in_half = kind is WeightsKind.FULL and self.device.type in HALF_ON
        self._shard_dtype = torch.bfloat16 if in_half and self._sharded else None
        self._forward = Forward(self._model, transform, packs=self.packs, autocast=not in_half)
        if self._sharded:
            shard(self._forward, layers_of(self._model), world, self._shard_dtype)
        hidden_size = self._model.get_output_embeddings().weight.shape[1]
        self.value_head = nn.Linear(hidden_size, 1, device=self.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def _load(self, *, trained: bool = True) -> Any:
        """Version 0, in evaluation mode; in bfloat16 on a GPU, but for parts that are trained."""
        in_parts = self._sharded and self.kind is WeightsKind.FULL and trained
        half = self.device.type in HALF_ON and not in_parts
        dtype = torch.bfloat16 if half else torch.float32
        return load_causal_lm(self._folder, dtype, self.device)

    @property
    def module(self) -> Any:
        """The transformers model as it is now, adapter on: for `generate`.

        Of sharded weights it is a copy on rank 0, brought up to date at each call; others have
        none.
        """
        if not self._sharded:
            return self._model
        self._world.announce("model", "gather")
        return self.gather()

    def gather(self) -> Any:
        """Bring sharded weights together on rank 0, where it returns the model."""
        if self._gathered is None and self._world.is_leader:
            self._gathered = self._load(trained=False)
            if self.kind is WeightsKind.LORA:
                add_adapter(self._gathered, *self._lora)
            self._gathered.requires_grad_(False)
        gather_into(self._gathered, self._model)
        return self._gathered

    def keep_activations(self, layers: int) -> None:
        """Have so many layers keep their activations, and the others compute them again."""
        checkpoint_layers(self._model, kept=layers)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding: token ids are below it."""
        return int(self._model.get_input_embeddings().weight.shape[0])

    @property
    def max_length(self) -> int:
        """Tokens the model has positions for."""
        return int(getattr(self.text_config, "max_position_embeddings", None) or 1 << 20)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return what training changes, by name; without the value head."""
        root: nn.Module = self._adapted or self._model
        return {name: p for name, p in root.named_parameters() if p.requires_grad}

    def logprobs(self, batch: SequenceBatch) -> Tensor:
        """Return (B, C) log π of each completion token, at its temperature; takes gradients."""
        share = share_of(batch, self._world)
        logprobs = self._placed(batch, share, self._forward(share.batch).logprobs)
        if self._noted is not None and logprobs.requires_grad:
            self._noted.add(batch, logprobs)
        return logprobs

    @contextlib.contextmanager
    def noting(self) -> Iterator[NotedLogprobs]:
        """Note the log-probs that gradients are taken of inside the block: the first of each."""
        self._noted = NotedLogprobs()
        try:
            yield self._noted
        finally:
            self._noted = None

    def logprobs_and_entropies(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Return (B, C) log-probs, and (B, C) entropies in nats, which take no gradients."""
        share = share_of(batch, self._world)
        run = self._forward(share.batch, entropies=True)
        entropies = self._placed(batch, share, run.entropies)
        return self._placed(batch, share, run.logprobs), entropies

    def logprobs_and_values(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Return (B, C) log-probs, and (B, C) values of the states the tokens were chosen in.

        The value head reads detached hidden states: its loss cannot move the policy.
        """
        share = share_of(batch, self._world)
        run = self._forward(share.batch)
        values = self.value_head(run.hidden.detach().float()).squeeze(-1)
        return self._placed(batch, share, run.logprobs), self._placed(batch, share, values)

    @torch.no_grad()
    def reference_logprobs(self, batch: SequenceBatch) -> Tensor:
        """Return (B, C) log π_ref of each completion token, at its temperature.

        What the batch knows from an earlier pass is not computed again.
        """
        if batch.ref_logprobs is not None:
            return batch.ref_logprobs
        with self._reference_policy() as reference:
            share = share_of(batch, self._world)
            return self._placed(batch, share, reference(share.batch).logprobs)

    def logprobs_and_divergences(
        self,
        batch: SequenceBatch,
        *,
        of_policy: bool = True,
        hinted: SequenceBatch | None = None,
        live: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return (B, C) log-probs, and KL divergences of the next token's whole distribution.

        KL(π ‖ π_ref), or KL(π_ref ‖ π) without `of_policy`: before each completion token, in nats,
        at temperature 1. π takes gradients. π_ref reads the completions after the prompts of
        `hinted` where they are given; with `live` it is π itself, held fixed. For few tokens: it
        holds their logits over the vocabulary.
        """
        share = share_of(batch, self._world)
        other = contextlib.nullcontext(self._forward) if live else self._reference_policy()
        with torch.no_grad(), other as forward:
            of_other = forward.distributions(share.of(batch, hinted))
        policy = self._forward.distributions(share.batch)
        first, second = (policy, of_other) if of_policy else (of_other, policy)
        flat = (first.exp() * (first - second)).sum(-1)
        chosen = policy.gather(-1, share.batch.targets[:, None])[:, 0]
        logprobs = self._placed(batch, share, chosen)
        if self._noted is not None and hinted is not None:
            self._noted.add(batch, logprobs)
        return logprobs, self._placed(batch, share, flat)

    def _placed(self, batch: SequenceBatch, share: RankShard, flat: Tensor) -> Tensor:
        """Put what all ranks computed of their shares into place, (B, C)."""
        if share.places is not None:
            flat = self._world.gather_rows(flat, share.places, batch.tokens)
        return batch.scatter(flat)

    @torch.no_grad()
    def compute_references(
        self, sequences: Sequence[TokenSequence], *, token_budget: int
    ) -> list[Reference]:
        """Return what the reference policy makes of each completion, whatever they carry already.

        Features are the mean of the states that its tokens were chosen in, at random projections
        that never change. `token_budget` is that of `TrainerSettings`.
        """
        given = list(sequences)
        self._world.announce("model", "compute_references", given, token_budget=token_budget)
        known: dict[int, Reference] = {}
        bare = [replace(sequence, ref_logprobs=()) for sequence in given]
        for numbers, batch in numbered_batches(
            bare, self.device, packs=self.packs, token_budget=token_budget
        ):
            share = share_of(batch, self._world)
            with self._reference_policy() as reference:
                run = reference(share.batch)
            states = projected(run.hidden)
            if share.places is not None:
                states = self._world.gather_rows(states, share.places, batch.tokens)
            counts = [len(sequence.completion_token_ids) for sequence in batch.sequences]
            rows = self._placed(batch, share, run.logprobs).tolist()
            features = [tuple(s.mean(0).tolist()) for s in torch.split(states, counts)]
            for number, row, count, of_one in zip(numbers, rows, counts, features, strict=True):
                known[number] = Reference(logprobs=tuple(row[:count]), features=of_one)
        return [known[number] for number in range(len(sequences))]

    @torch.no_grad()
    def compute_logprobs(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        """Return log π of each completion's tokens, in order; beginnings are computed once."""
        self._world.announce("model", "compute_logprobs", list(sequences))
        known: dict[int, tuple[float, ...]] = {}
        for indices, batch in numbered_rows(sequences, self.device):
            for index, row in zip(indices, self.logprobs(batch).tolist(), strict=True):
                known[index] = tuple(row[: len(sequences[index].completion_token_ids)])
        return [known[index] for index in range(len(sequences))]

    @torch.no_grad()
    def compute_likeliest(
        self, sequences: Sequence[TokenSequence], *, divergences: bool = False
    ) -> list[Likeliest]:
        """Return the likeliest token in the place of each completion token, in order."""
        self._world.announce("model", "compute_likeliest", list(sequences), divergences=divergences)
        known: dict[int, Likeliest] = {}
        for indices, batch in numbered_rows(sequences, self.device):
            share = share_of(batch, self._world)
            policy = self._forward.distributions(share.batch)
            columns = [*policy.max(-1)]
            if divergences:
                with self._reference_policy() as forward:
                    reference = self._reference_states.distributions(forward, share.batch)
                columns.append((policy.exp() * (policy - reference)).sum(-1))
            rows = [self._placed(batch, share, column).tolist() for column in columns]
            for index, *row in zip(indices, *rows, strict=True):
                count = len(sequences[index].completion_token_ids)
                known[index] = Likeliest(*(tuple(values[:count]) for values in row))
        return [known[index] for index in range(len(sequences))]

    @contextlib.contextmanager
    def reference_module(self) -> Iterator[Any]:
        """Give the reference policy as a transformers model: for `generate`.

        Of sharded weights no rank holds it whole: it is loaded for the while.
        """
        if self._sharded:
            yield self._load(trained=False)
            return
        with self._reference_policy() as reference:
            yield reference.model

    def merged(self) -> contextlib.AbstractContextManager[None]:
        """Have passes cost less inside the block, in which nothing is trained or saved."""
        if self._adapter is None or self._sharded:
            return contextlib.nullcontext()
        return self._adapter.merged()

    @contextlib.contextmanager
    def _reference_policy(self) -> Iterator[Forward]:
        if self._adapter is not None:
            with self._adapter.off():
                yield self._forward
            return
        if self._reference is None:
            # Only now: what knows its reference log-probs has no use for a second copy.
            model = self._load(trained=False).requires_grad_(False)
            if self.packs:
                with silence_loading():
                    model.set_attn_implementation(self.text_config._attn_implementation)
            self._reference = self._forward.of(model)
            if self._sharded:
                shard(self._reference, layers_of(model), self._world, self._shard_dtype)
        yield self._reference

    def save_weights(self, folder: Path, *, base_model: str) -> None:
        """Write what generation loads: a PEFT folder, or a `save_pretrained` folder.

        Full weights are written in the dtype that generation serves in: on a GPU half of float32,
        and so half of what each swap reads. `base_model` is the name of version 0.
        """
        if self._adapted is None:
            half = self.device.type in HALF_ON
            weight_files.write_full(folder, self._model, self._folder, half=half, world=self._world)
            return
        tensors = weight_files.adapter_of(self._adapted)
        if self._world.is_leader:
            weight_files.write_adapter(folder, tensors, self._adapted, base_model)

    def load_weights(self, folder: Path) -> None:
        """Load a published version; raises `WeightsRefused` naming the tensor that differs.

        The reference policy stays version 0.
        """
        if self._adapted is None:
            weight_files.read_whole(folder, self._model)
        else:
            weight_files.read_adapter(folder, self._adapted)
