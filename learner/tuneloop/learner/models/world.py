"""Several processes that train one policy together, started by torchrun.

Rank 0 leads: it alone reads data, samples, scores, prints, keeps the ledger and the checkpoints.
What it tells its trainer to do it announces to the others, which do the same on the same samples
(`follow`). Of every micro-batch each rank runs its share of the sequences; the log-probs of all are
put together on every rank, so that plans, losses, metrics and what is skipped are computed from
the same numbers everywhere and need to know nothing of ranks. What differs is the gradient: each
rank has that of its own sequences, and they are summed.

In a process of its own nothing here touches torch.distributed.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from tuneloop.errors import TuneloopError
from tuneloop.learner.models.memory import is_out_of_memory
from tuneloop.learner.models.packing import packed_length, trees
from tuneloop.learner.samples import TokenSequence

logger = logging.getLogger("tuneloop.learner.models")

END = "end"
Announcement = tuple[str, str, tuple[Any, ...], dict[str, Any]]
"""Target, method, and its arguments."""
PATIENCE = timedelta(days=365)
"""How long followers wait for an announcement: feedback may not come for days."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The ranks, and what they do together; every collective call is made by all of them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of this machine: which GPU is its own."""
    commands: Any = None
    """Process group of the announcements and of checkpoints: gloo, also beside NCCL."""
    store: Any = None
    """Torchrun's own store, which outlives the ranks where it runs on one machine."""
    shortages: int = 0
    """Starts of these ranks that ended because memory ran out on one of them."""

    @property
    def is_leader(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Return the device of this rank: `cuda` is one GPU to a rank."""
        return f"cuda:{self.local_rank}" if self.size > 1 and name == "cuda" else name

    def announce(self, target: str, method: str, *arguments: Any, **named: Any) -> None:
        """Have the followers call a method of `trainer` or `model` that the leader now calls."""
        if self.size > 1 and self.is_leader:
            self._broadcast((target, method, arguments, named))

    def dismiss(self) -> None:
        """Tell the followers to end, if they have not already."""
        try:
            self.announce(END, "")
        except RuntimeError as error:
            logger.warning("the other ranks are gone: %s", error)

    def close(self) -> None:
        """Leave the other ranks; no collective call is possible afterwards.

        A process that ends with gloo's threads still running is sometimes aborted at its exit.
        """
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()

    def receive(self) -> Announcement:
        """Return what the leader announces next."""
        announced: Announcement = self._broadcast(None)
        return announced

    def _broadcast(self, value: Any) -> Any:
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.commands, device=torch.device("cpu"))
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, on all of them."""
        values = [value] * self.size
        if self.size > 1:
            import torch.distributed as dist

            dist.all_gather_object(values, value, group=self.commands)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def all_true(self, fact: bool, device: torch.device) -> bool:
        """Return whether a fact holds on every rank."""
        if self.size == 1:
            return fact
        return float(self.sum(torch.tensor(float(not fact), device=device))) == 0.0

    def gather_rows(self, values: Tensor, places: Tensor, total: int) -> Tensor:
        """Return (total, …) values, those of this rank at its `places`; differentiable.

        `values` may be more than `places`: the first are taken. The gradient of a rank's values is
        its own part of the whole's, which every rank has.
        """
        whole: Tensor = _GatherRows.apply(values, places, total, self)  # type: ignore[no-untyped-call]
        return whole

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum the gradients of what every rank has a copy of; sharded ones are summed already."""
        if self.size == 1:
            return
        copies = [p for p in parameters if not is_sharded(p)]
        if not copies:
            return
        # An expert that no token of a rank came to has no gradient there.
        used = torch.tensor([p.grad is not None for p in copies], device=copies[0].device)
        used = self.sum(used.int())
        for p, count in zip(copies, used.tolist(), strict=True):
            if count == 0:
                continue
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        gradients = [p.grad for p in copies if p.grad is not None]
        if not gradients:
            return
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    @contextmanager
    def together(self) -> Iterator[None]:
        """End the process if this rank fails alone: the others would wait for it without end.

        What torchrun restarts resumes from the last checkpoint, with a smaller token budget where
        memory ran out. A refused sample is refused on every rank and is no failure.
        """
        try:
            yield
        except TuneloopError:
            raise
        except Exception as error:
            if self.size == 1:
                raise
            if is_out_of_memory(error) and self.store is not None:
                self.store.set(_shortage(_restart_count()), "yes")
            logger.critical("rank %d failed; all ranks have to be started again", self.rank)
            logger.exception("the failure")
            logging.shutdown()
            os._exit(1)


ALONE = World()
"""A single process."""


class _GatherRows(torch.autograd.Function):
    """Zeros with each rank's values in place, summed: the sum rounds nothing."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, total: int, world: World) -> Tensor:
        ctx.save_for_backward(places)
        ctx.given = values.shape[0]
        whole = values.new_zeros(total, *values.shape[1:])
        whole[places] = values[: len(places)]
        return world.sum(whole)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        own = gradient.new_zeros(ctx.given, *gradient.shape[1:])
        own[: len(places)] = gradient[places]
        return own, None, None, None


def join() -> World:
    """Join the other ranks that torchrun started; `ALONE` if it did not start this process."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        return ALONE
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    outliving, shortages = None, 0
    # Without a backend named there is one for each kind of device: gloo, and NCCL where it is.
    if not dist.is_initialized():
        store, rank, _ = next(rendezvous("env://"))
        outliving = store
        while isinstance(outliving, PrefixStore):
            outliving = outliving.underlying_store
        shortages = sum(outliving.check([_shortage(n)]) for n in range(_restart_count()))
        # On one machine torchrun's store outlives a restart, and with it the old ranks' addresses.
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            store = PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
        dist.init_process_group(store=store, rank=rank, world_size=size)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    return World(
        rank=dist.get_rank(),
        size=size,
        local_rank=local_rank,
        commands=dist.new_group(backend="gloo", timeout=PATIENCE),
        store=outliving,
        shortages=shortages,
    )


def limit_gpu_memory(gib: float) -> None:
    """Let torch allocate at most `gib` GiB of this rank's GPU; on a CPU nothing is done."""
    if not torch.cuda.is_available():
        return
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total))


def _restart_count() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _shortage(start: int) -> str:
    return f"tuneloop/out_of_memory/{start}"


@contextmanager
def dismiss_followers(world: World) -> Iterator[None]:
    """Dismiss the followers on the way out, also after an error, and leave the group."""
    try:
        yield
    finally:
        world.dismiss()
        world.close()


def is_sharded(tensor: Any) -> bool:
    """Return whether each rank holds a part of the tensor only."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Any) -> Tensor:
    """Return the tensor with the parts of all ranks; a collective call where it is sharded."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return full


def local_tensor(tensor: Any) -> Tensor:
    """Return what this rank holds of the tensor."""
    local: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return local


def shard_like(tensor: Tensor, pattern: Any) -> Tensor:
    """Return a copy of a whole tensor on the device of `pattern`, sharded in the same way."""
    moved = tensor.to(pattern.device, copy=True)
    if not is_sharded(pattern):
        return moved
    from torch.distributed.tensor import distribute_tensor

    # Every rank has the whole of it already: nothing is sent.
    return distribute_tensor(moved, pattern.device_mesh, pattern.placements, src_data_rank=None)


def shard(
    model: torch.nn.Module,
    layers: Sequence[torch.nn.Module],
    world: World,
    dtype: torch.dtype | None = None,
) -> None:
    """Divide the parameters among the ranks (FSDP2), layer by layer; gradients are summed.

    With a `dtype` layers are brought together in it, and gradients summed in float32; what each
    rank keeps, and trains, stays as it is. Autocast would make a whole copy in it beside them.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    summed = None if dtype is None else torch.float32
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=summed)
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (world.size,))
    for module in (*layers, model):
        # Not kept whole after a pass, also by the outermost: a checkpoint may be loaded between.
        sharded = fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=precision)
        # Losses are divided by global counts already.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)


@torch.no_grad()
def gather_into(whole: torch.nn.Module | None, sharded: torch.nn.Module) -> None:
    """Bring trained parameters together in the model that the leader gives, one after the other.

    No device holds more than one of them whole, but where `whole` is.
    """
    copies = {} if whole is None else dict(whole.named_parameters())
    for name, parameter in sharded.named_parameters():
        if parameter.requires_grad:
            tensor = full_tensor(parameter.detach())
            if name in copies:
                copies[name].copy_(tensor)


def shard_sequences(sequences: Sequence[TokenSequence], size: int) -> list[list[int]]:
    """Divide the rows of a batch into `size` shares of about equal cost; some may be empty.

    Rows that share tokens stay together, to have them computed once, where there are enough others.
    """
    pieces = trees(sequences)
    if len(pieces) < size:
        pieces = [[row] for row in range(len(sequences))]
    costs = [packed_length([sequences[row] for row in piece]) for piece in pieces]
    found: list[list[int]] = [[] for _ in range(size)]
    loads = [0] * size
    for index in sorted(range(len(pieces)), key=lambda index: -costs[index]):
        rank = loads.index(min(loads))
        found[rank].extend(pieces[index])
        loads[rank] += costs[index]
    return [sorted(share) for share in found]
