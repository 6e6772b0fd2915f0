"""How far a version's weights are from the base model's, in norms.

Relative: the Frobenius norm of the change over that of the base weights that changed, all of them
together. For LoRA the change of a layer is s·B·A (s = alpha / rank), whose norm needs no product of
that size: ‖BA‖² = trace((BᵀB)(AAᵀ)).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.policies import WeightsKind
from tuneloop.weights.shapes import base_names, module_of, read_config


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightDelta:
    """A distance from the base model."""

    norm: float
    base_norm: float

    @property
    def relative(self) -> float:
        """As a share of the base weights' norm; infinite if that is 0."""
        return self.norm / self.base_norm if self.base_norm else math.inf


class BaseDistance:
    """Measures versions against one base model, whose norms are computed once."""

    def __init__(self, base: Path, kind: WeightsKind) -> None:
        self._base = base
        self.kind = kind
        self._norms: dict[str, float] = {}

    def of(self, version: Path) -> WeightDelta:
        """Return the distance of the version in a folder; blocks."""
        with _Tensors(self._base) as base, _Tensors(version) as given:
            if self.kind is WeightsKind.FULL:
                return self._of_full(base, given)
            config = read_config(version, "adapter_config.json")
            return self._of_adapter(base, given, config["lora_alpha"] / config["r"])

    def _of_adapter(self, base: "_Tensors", given: "_Tensors", scale: float) -> WeightDelta:
        squares = base_squares = 0.0
        for module in sorted({module_of(name) for name in given.names}):
            a = given.double(f"{module}.lora_A.weight")
            b = given.double(f"{module}.lora_B.weight")
            product = (b.T @ b) * (a @ a.T)
            squares += scale**2 * float(product.sum())
            name = next(name for name in base_names(module) if name in base.names)
            base_squares += self._norm(base, name) ** 2
        # Rounding may leave the sum slightly below 0.
        return WeightDelta(norm=math.sqrt(max(0.0, squares)), base_norm=math.sqrt(base_squares))

    def _of_full(self, base: "_Tensors", given: "_Tensors") -> WeightDelta:
        squares = base_squares = 0.0
        for name in sorted(base.names & given.names):
            squares += float((given.double(name) - base.double(name)).square().sum())
            base_squares += self._norm(base, name) ** 2
        return WeightDelta(norm=math.sqrt(squares), base_norm=math.sqrt(base_squares))

    def _norm(self, base: "_Tensors", name: str) -> float:
        if name not in self._norms:
            self._norms[name] = float(base.double(name).norm())
        return self._norms[name]


class _Tensors:
    """The tensors of a folder's safetensors files, read one at a time. A context manager."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._files: list[Any] = [
            safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))
        ]
        # It has a mapping's methods, but cannot be iterated over.
        self._file_of = {name: f for f in self._files for name in f.keys()}  # noqa: SIM118
        self.names = set(self._file_of)

    def __enter__(self) -> "_Tensors":
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files:
            file.__exit__(None, None, None)

    def double(self, name: str) -> Any:
        """Return a tensor in float64."""
        return self._file_of[name].get_tensor(name).double()
