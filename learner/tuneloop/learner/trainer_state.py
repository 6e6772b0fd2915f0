"""What a trainer must remember to go on exactly where it was."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerState:
    """Tensors by name, and plain values; a checkpoint holds one for each trainer."""

    model: Mapping[str, Tensor]
    """What is trained."""
    optimizer: Mapping[str, Tensor]
    """`<parameter>.<moment>` of the optimizer."""
    scheduler: Mapping[str, Any]
    """Where the learning rate is; JSON."""
