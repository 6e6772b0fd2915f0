"""AdamW with clipping and warm-up, and recent gradient norms that reveal a spike."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Self

import torch
from torch import Tensor, nn

from tuneloop.errors import CorruptData
from tuneloop.learner.models.world import ALONE, World, full_tensor, local_tensor
from tuneloop.learner.trainer.base import TrainerState
from tuneloop.learner.trainer.settings import OptimizerSettings

WINDOW = 20
"""Norms remembered of each kind of step."""
LEAST = 10
"""Norms below which none is called a spike."""


class GradientNorms:
    """Norms of recent steps by kind of step: each mix of losses has its own usual size.

    Spikes are remembered too: what was a spike is usual once it fills half of the window, so that a
    change for good does not stop learning.
    """

    def __init__(self) -> None:
        """Start without a history."""
        self._recent: dict[str, list[float]] = {}

    def is_spike(self, kind: str, norm: float, factor: float) -> bool:
        """Remember `norm`; return whether it is over `factor` times the median of recent ones."""
        recent = self._recent.get(kind, [])
        spike = len(recent) >= LEAST and norm > factor * median(recent)
        if norm > 0:
            self._recent[kind] = [*recent, norm][-WINDOW:]
        return spike

    def state(self) -> dict[str, list[float]]:
        """Return plain values for a checkpoint."""
        return {kind: list(norms) for kind, norms in self._recent.items()}

    @classmethod
    def of_state(cls, state: Any) -> Self:
        """Return norms as they were; raises `CorruptData`."""
        norms = cls()
        if not isinstance(state, Mapping):
            raise CorruptData("checkpoint: scheduler.gradient_norms is not a table")
        for kind, values in state.items():
            if not isinstance(values, list) or not all(map(_is_norm, values)):
                raise CorruptData(f"checkpoint: scheduler.gradient_norms.{kind} holds other things")
            norms._recent[str(kind)] = [float(value) for value in values]
        return norms


def _is_norm(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0


MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of a parameter."""
Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedGradient:
    """The outcome of a gradient."""

    norm: float
    """Of the first group, before the clip."""
    refusal: str = ""
    """`non_finite_gradient` or `gradient_spike`: nothing has changed. Empty: it was applied."""


class Optimizer:
    """AdamW over groups of named parameters, each group with its own rate and its own clip."""

    def __init__(
        self,
        groups: Sequence[tuple[Mapping[str, nn.Parameter], float]],
        settings: OptimizerSettings,
        world: World = ALONE,
    ) -> None:
        """Take (named parameters, learning rate) for each group; weight decay is in `settings`.

        With several ranks in `world` gradients are summed over them; all must take every step.
        """
        self._settings = settings
        self._world = world
        self._rates = [rate for _, rate in groups]
        self._named = {name: p for named, _ in groups for name, p in named.items()}
        self._adamw = torch.optim.AdamW(
            [{"params": list(named.values()), "lr": rate} for named, rate in groups],
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._norms = GradientNorms()
        self.steps = 0
        """Optimizer steps taken."""
        self.rate_factor = 1.0
        """What the rates of the next step are multiplied by; not kept in a checkpoint."""
        self._resumed_at: int | None = None

    @property
    def learning_rate(self) -> float:
        """The rate of the first group at the next step."""
        return self._rates[0] * self._warmth

    @property
    def _warmth(self) -> float:
        warmth = self._ramp(0, self._settings.warmup_steps)
        if self._resumed_at is not None:
            warmth = min(warmth, self._ramp(self._resumed_at, self._settings.resume_warmup_steps))
        return warmth * self._decay * self.rate_factor

    def _ramp(self, start: int, length: int) -> float:
        """Where a warm-up of `length` steps is that began before step `start`: from 1/length to 1.

        Adam's first steps have the size of the rate in every weight, however small the gradient:
        its moments are of one batch, so their ratio is ±1.
        """
        return min(1.0, (self.steps - start + 1) / max(1, length))

    @property
    def _decay(self) -> float:
        settings = self._settings
        if settings.lr_scheduler_type == "constant" or settings.max_steps is None:
            return 1.0
        falling = max(1, settings.max_steps - settings.warmup_steps)
        progress = min(1.0, max(0, self.steps - settings.warmup_steps) / falling)
        if settings.lr_scheduler_type == "linear":
            return 1.0 - progress
        return 0.5 * (1.0 + math.cos(math.pi * progress))

    def finite(self) -> bool:
        """Return whether every parameter is finite: a far too high rate makes some that are not."""
        parts = [local_tensor(p) for p in self._named.values()]
        finite = all(bool(torch.isfinite(part).all()) for part in parts)
        return self._world.all_true(finite, parts[0].device)

    def zero_grad(self) -> None:
        """Clear the gradients, also those of a step that was abandoned."""
        self._adamw.zero_grad(set_to_none=True)

    def step(self, kind: str = "") -> AppliedGradient:
        """Apply the gradients, or clear them if a norm is not finite or is a spike.

        `kind` names the mix of losses: norms are compared with those of steps of the same kind.
        """
        self._world.sum_gradients(self._named.values())
        norms = []
        for group in self._adamw.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients) if gradients else None
            norms.append(None if norm is None else full_tensor(norm))
        values = [0.0 if norm is None else float(norm) for norm in norms]
        if reason := self._refusal(kind, values):
            self.zero_grad()
            return AppliedGradient(norm=values[0], refusal=reason)
        for group, rate, norm in zip(self._adamw.param_groups, self._rates, norms, strict=True):
            group["lr"] = rate * self._warmth
            if norm is not None:
                torch.nn.utils.clip_grads_with_norm_(
                    group["params"], self._settings.max_grad_norm, norm
                )
        self._adamw.step()
        self.zero_grad()
        self.steps += 1
        return AppliedGradient(norm=values[0])

    def _refusal(self, kind: str, norms: Sequence[float]) -> str:
        """Return why a step with these norms of the groups is skipped; empty if it is taken."""
        if not all(map(math.isfinite, norms)):
            return "non_finite_gradient"
        factor = self._settings.spike_factor
        if factor is None or not self._norms.is_spike(kind, norms[0], factor):
            return ""
        # What is under the clip does no harm: as a policy converges, its gradients come to nothing.
        return "gradient_spike" if norms[0] > self._settings.max_grad_norm else ""

    def state(self) -> TrainerState:
        """Return copies of the parameters, their moments and the step count, in main memory.

        Of what is sharded a rank copies its own part.
        """
        optimizer: dict[str, Tensor] = {}
        for name, parameter in self._named.items():
            for moment, tensor in self._adamw.state.get(parameter, {}).items():
                optimizer[f"{name}.{moment}"] = _copy(tensor)
        return TrainerState(
            model={name: _copy(parameter) for name, parameter in self._named.items()},
            optimizer=optimizer,
            scheduler={"optimizer_steps": self.steps, "gradient_norms": self._norms.state()},
        )

    def load_state(self, state: TrainerState) -> None:
        """Restore `state`; raises `CorruptData`, and changes nothing, if it does not fit."""
        self._check(_shapes(state.model), _shapes(state.optimizer))
        steps = state.scheduler.get("optimizer_steps")
        if not isinstance(steps, int) or steps < 0:
            raise CorruptData("checkpoint: scheduler.optimizer_steps is not a count")
        norms = GradientNorms.of_state(state.scheduler.get("gradient_norms", {}))
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(state.model[name])
        self._adamw.state.clear()
        for key, tensor in state.optimizer.items():
            name, _, moment = key.rpartition(".")
            parameter = self._named[name]
            moments = self._adamw.state.setdefault(parameter, {})
            moments[moment] = tensor.to(parameter.device, copy=True)
        self.steps = steps
        self._norms = norms
        self._resumed_at = steps

    def blank(self, model: Shapes, optimizer: Shapes) -> TrainerState:
        """Room for a state of these shapes, laid out as `state` is; raises `CorruptData`."""
        self._check(model, optimizer)
        return TrainerState(
            model={name: _room(self._named[name]) for name in model},
            optimizer={
                key: _room(self._named[key.rpartition(".")[0]]) if shape else torch.empty(())
                for key, shape in optimizer.items()
            },
            scheduler={},
        )

    def _check(self, model: Shapes, optimizer: Shapes) -> None:
        """Raise `CorruptData` unless a state of these shapes is of these parameters."""
        for name in sorted(self._named.keys() ^ model.keys()):
            raise CorruptData(f"checkpoint: tensor {name} is not in both model and checkpoint")
        for key in optimizer:
            name, _, moment = key.rpartition(".")
            if name not in self._named or moment not in MOMENTS:
                raise CorruptData(f"checkpoint: {key} belongs to another optimizer")
        for name, parameter in self._named.items():
            shapes = {m: optimizer[f"{name}.{m}"] for m in MOMENTS if f"{name}.{m}" in optimizer}
            # Before its first step a parameter has none.
            if len(shapes) not in {0, len(MOMENTS)}:
                raise CorruptData(f"checkpoint: moments of {name} are missing")
            shapes.pop("step", None)
            for shape in (model[name], *shapes.values()):
                if shape != parameter.shape:
                    found = f"{tuple(shape)}, not {tuple(parameter.shape)}"
                    raise CorruptData(f"checkpoint: {name} has shape {found}")


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _room(parameter: nn.Parameter) -> Tensor:
    return torch.empty_like(parameter, device="cpu", requires_grad=False)
