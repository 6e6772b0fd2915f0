"""The state of every random generator a training process may draw from."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomState:
    """Python's, numpy's and torch's generators."""

    python: tuple[Any, ...]
    numpy: Mapping[str, Any]
    """`key` (624 numbers), `pos`, `has_gauss`, `cached_gaussian` of the global MT19937."""
    torch: Mapping[str, Tensor]
    """uint8, by device: `cpu`, `cuda:0` …"""

    @classmethod
    def capture(cls) -> "RandomState":
        """Copy the state of all generators."""
        kind, key, *rest = np.random.get_state()
        assert kind == "MT19937"
        position, has_gauss, cached = rest
        tensors = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            states = torch.cuda.get_rng_state_all()
            tensors |= {f"cuda:{index}": state for index, state in enumerate(states)}
        return cls(
            python=random.getstate(),
            numpy={
                "key": [int(number) for number in key],
                "pos": int(position),
                "has_gauss": int(has_gauss),
                "cached_gaussian": float(cached),
            },
            torch=tensors,
        )

    def restore(self) -> None:
        """Put all generators back; devices this machine lacks are passed over."""
        random.setstate(self.python)
        key = np.array(self.numpy["key"], dtype=np.uint32)
        rest = (self.numpy["pos"], self.numpy["has_gauss"], self.numpy["cached_gaussian"])
        np.random.set_state(("MT19937", key, *rest))
        torch.set_rng_state(self.torch["cpu"])
        for name, state in self.torch.items():
            if name.startswith("cuda:") and int(name[5:]) < torch.cuda.device_count():
                torch.cuda.set_rng_state(state, name)

    def to_document(self) -> dict[str, Any]:
        """Return what is not a tensor, as JSON."""
        version, numbers, gauss = self.python
        return {"python": [version, list(numbers), gauss], "numpy": dict(self.numpy)}

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> "RandomState":
        """Return the inverse of `to_document`."""
        version, numbers, gauss = document["python"]
        return cls(
            python=(version, tuple(numbers), gauss), numpy=document["numpy"], torch=dict(tensors)
        )
