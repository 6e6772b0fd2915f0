"""AdamW with clipping and warm-up, whose steps are as large as the evidence behind them.

Adam divides by the size of its gradients, so whatever weighs down a whole batch (few judgements,
little trust) cancels: only the rate can say what a batch weighs. A gradient therefore comes with
its `evidence`, the part of a full step that it is worth. Below a full step a batch stays open: its
gradients add up, all at the weights where it began, and the weights are one step from there, at a
rate in proportion. Sixteen judgements one by one so end where a batch of sixteen does, and Adam's
moments only see full batches.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tuneloop.errors import CorruptData
from tuneloop.learner.guards.gradient_norms import GradientNorms
from tuneloop.learner.losses.means import read_numbers
from tuneloop.learner.models.world import ALONE, World, full_tensor
from tuneloop.learner.trainer.base import TrainerState
from tuneloop.learner.trainer.master_weights import MasterWeights
from tuneloop.learner.trainer.settings import OptimizerSettings

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of a parameter."""
OPEN_GRADIENT = "open_gradient"
"""A checkpoint's name for a parameter's share of the open batch's gradient."""
FULL = 1.0 - 1e-6
"""Evidence from which a batch is full: that of sixteen judgements adds up to a little off 1."""
MOST = 1.25
"""Evidence up to which a batch takes in more; past it what there is becomes a step first."""
Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedGradient:
    """The outcome of a gradient."""

    norm: float
    """Of the first group, before the clip."""
    refusal: str = ""
    """`non_finite_gradient` or `gradient_spike`: nothing has changed. Empty: it was applied."""


@dataclass(slots=True, kw_only=True)
class OpenBatch:
    """What is needed to take the step of a batch again once it has grown."""

    evidence: float
    gradients: dict[str, Tensor]
    """Their sum by parameter, each times its evidence."""
    parameters: dict[str, Tensor]
    """As they were where the batch began."""
    moments: dict[str, dict[str, Tensor]]
    """As Adam's were there; none before its first step."""


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
        What moves and is saved of a parameter in bfloat16 is its master.
        """
        self._settings = settings
        self._world = world
        self._rates = [rate for _, rate in groups]
        self.masters = MasterWeights({n: p for named, _ in groups for n, p in named.items()})
        self._named = self.masters.tensors
        self._adamw = torch.optim.AdamW(
            [{"params": [self._named[n] for n in named], "lr": rate} for named, rate in groups],
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._norms = GradientNorms()
        self._open: OpenBatch | None = None
        self.steps = 0
        """Full steps taken."""
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
        return self.masters.finite(self._world)

    def zero_grad(self) -> None:
        """Clear the gradients, also those of a step that was abandoned."""
        self.masters.clear_gradients()

    @property
    def open_evidence(self) -> float:
        """Evidence of the open batch; 0 while none is open."""
        return 0.0 if self._open is None else self._open.evidence

    def rewind(self, evidence: float) -> None:
        """Put the weights where the open batch began; or close it, if `evidence` is too much."""
        if self._open is not None and self._open.evidence + evidence > MOST:
            self._close()
        if self._open is not None:
            self.masters.put(self._open.parameters)

    def resume(self) -> None:
        """Undo `rewind`: the weights are again what the open batch makes of them."""
        if self._open is not None:
            self._take(self._open.evidence)

    def _close(self) -> None:
        self._open = None
        self.steps += 1

    def step(
        self, kind: str = "", *, evidence: float = 1.0, closes: bool = True
    ) -> AppliedGradient:
        """Apply the gradients, or clear them if a norm is not finite or is a spike.

        `kind` names the mix of losses: norms are compared with those of steps of the same kind.
        `evidence`, above 0, is what the gradients are worth as a part of a full step; the loss was
        divided by it. Below a full step the batch stays open, unless this `closes` it. Call
        `rewind` before the gradients are computed, and `resume` where none come.
        """
        self.masters.take_gradients()
        self._world.sum_gradients(self._named.values())
        norms = self._norms_of_groups()
        values = read_numbers([torch.zeros(()) if norm is None else norm for norm in norms])
        if reason := self._refusal(kind, values):
            self.zero_grad()
            self.resume()
            return AppliedGradient(norm=values[0], refusal=reason)
        total = self.open_evidence + evidence
        final = closes or total >= FULL
        if self._open is not None or not final:
            self._add_to_open(evidence)
        if self._open is not None:
            self._open.evidence = total
            self._take(total)
        else:
            self._apply(total, norms)
        if final:
            self._close()
        return AppliedGradient(norm=values[0])

    def _norms_of_groups(self) -> list[Tensor | None]:
        groups = [group["params"] for group in self._adamw.param_groups]
        gradients = [[p.grad for p in group if p.grad is not None] for group in groups]
        norm_of = torch.nn.utils.get_total_norm
        return [full_tensor(norm_of(group)) if group else None for group in gradients]

    def _add_to_open(self, evidence: float) -> None:
        """Add the gradients to those of the open batch, which may begin here."""
        if self._open is None:
            self._open = OpenBatch(
                evidence=0.0,
                gradients={},
                parameters={name: p.detach().clone() for name, p in self._named.items()},
                moments={
                    name: {moment: value.clone() for moment, value in state.items()}
                    for name, p in self._named.items()
                    if (state := self._adamw.state.get(p))
                },
            )
        for name, parameter in self._named.items():
            if parameter.grad is None:
                continue
            weighed = parameter.grad.detach() * evidence
            known = self._open.gradients.get(name)
            self._open.gradients[name] = weighed if known is None else known.add_(weighed)

    def _take(self, evidence: float) -> None:
        """Take the open batch's step from where it began."""
        assert self._open is not None
        self.zero_grad()
        self.masters.put(self._open.parameters)
        for name, parameter in self._named.items():
            self._adamw.state.pop(parameter, None)
            if moments := self._open.moments.get(name):
                self._adamw.state[parameter] = {m: v.clone() for m, v in moments.items()}
            if (gradient := self._open.gradients.get(name)) is not None:
                parameter.grad = gradient / evidence
        self._apply(evidence, self._norms_of_groups())

    def _apply(self, evidence: float, norms: Sequence[Tensor | None]) -> None:
        """Clip the gradients and step, at a rate in proportion to `evidence`."""
        factor = min(1.0, evidence)
        for group, rate, norm in zip(self._adamw.param_groups, self._rates, norms, strict=True):
            group["lr"] = rate * self._warmth * factor
            if norm is not None:
                torch.nn.utils.clip_grads_with_norm_(
                    group["params"], self._settings.max_grad_norm, norm
                )
        self._adamw.step()
        self.masters.round()
        self.zero_grad()

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

        Of an open batch it is where it began and its gradients. Of what is sharded a rank copies
        its own part.
        """
        optimizer: dict[str, Tensor] = {}
        parameters: Mapping[str, Tensor] = self._named
        if self._open is None:
            moments = {name: self._adamw.state.get(p, {}) for name, p in self._named.items()}
        else:
            parameters, moments = self._open.parameters, self._open.moments
            for name, gradient in self._open.gradients.items():
                optimizer[f"{name}.{OPEN_GRADIENT}"] = _copy(gradient)
        for name, values in moments.items():
            for moment, tensor in values.items():
                optimizer[f"{name}.{moment}"] = _copy(tensor)
        return TrainerState(
            model={name: _copy(parameter) for name, parameter in parameters.items()},
            optimizer=optimizer,
            scheduler={
                "optimizer_steps": self.steps,
                "gradient_norms": self._norms.state(),
                "open_evidence": self.open_evidence,
            },
        )

    def load_state(self, state: TrainerState) -> None:
        """Restore `state`; raises `CorruptData`, and changes nothing, if it does not fit."""
        self._check(_shapes(state.model), _shapes(state.optimizer))
        steps = state.scheduler.get("optimizer_steps")
        if not isinstance(steps, int) or steps < 0:
            raise CorruptData("checkpoint: scheduler.optimizer_steps is not a count")
        evidence = state.scheduler.get("open_evidence", 0.0)
        if not isinstance(evidence, (int, float)) or not 0 <= evidence <= MOST:
            raise CorruptData(f"checkpoint: scheduler.open_evidence is {evidence!r}")
        norms = GradientNorms.of_state(state.scheduler.get("gradient_norms", {}))
        self.masters.put(state.model)
        self._adamw.state.clear()
        gradients: dict[str, Tensor] = {}
        for key, tensor in state.optimizer.items():
            name, _, moment = key.rpartition(".")
            parameter = self._named[name]
            value = tensor.to(parameter.device, copy=True)
            if moment == OPEN_GRADIENT:
                gradients[name] = value
            else:
                self._adamw.state.setdefault(parameter, {})[moment] = value
        self.steps = steps
        self._norms = norms
        self._open, self._resumed_at = None, None if evidence > 0 else steps
        if evidence > 0:
            self._add_to_open(0.0)
            assert self._open is not None
            self._open.evidence, self._open.gradients = evidence, gradients
            self._take(evidence)

    def blank(self, model: Shapes, optimizer: Shapes) -> TrainerState:
        """Room for a state of these shapes, laid out as `state` is; raises `CorruptData`."""
        self._check(model, optimizer)
        room = partial(torch.empty_like, device="cpu", requires_grad=False)
        return TrainerState(
            model={name: room(self._named[name]) for name in model},
            optimizer={
                key: room(self._named[key.rpartition(".")[0]]) if shape else torch.empty(())
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
            if name not in self._named or moment not in (*MOMENTS, OPEN_GRADIENT):
                raise CorruptData(f"checkpoint: {key} belongs to another optimizer")
        for name, parameter in self._named.items():
            shapes = {m: optimizer[f"{name}.{m}"] for m in MOMENTS if f"{name}.{m}" in optimizer}
            # Before its first step a parameter has none.
            if len(shapes) not in {0, len(MOMENTS)}:
                raise CorruptData(f"checkpoint: moments of {name} are missing")
            shapes.pop("step", None)
            if (gradient := optimizer.get(f"{name}.{OPEN_GRADIENT}")) is not None:
                shapes[OPEN_GRADIENT] = gradient
            for shape in (model[name], *shapes.values()):
                if shape != parameter.shape:
                    found = f"{tuple(shape)}, not {tuple(parameter.shape)}"
                    raise CorruptData(f"checkpoint: {name} has shape {found}")


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
