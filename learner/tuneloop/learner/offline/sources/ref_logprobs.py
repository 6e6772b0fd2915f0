"""Log-probs of the reference policy, computed once for a run that passes over its data repeatedly.

They are kept in the run's folder: a resumed run must continue with the very same numbers.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tuneloop.learner.samples import TokenSequence, sequences_of, with_ref_logprobs

Compute = Callable[[Sequence[TokenSequence]], Sequence[tuple[float, ...]]]
"""Returns the reference policy's log-probs of the completion tokens."""


def with_stored_reference(
    samples: Sequence[Any], compute: Compute, path: Path, *, run: str
) -> list[Any]:
    """Return the samples with `ref_logprobs`, from `path` if run `run` wrote it, else computed."""
    sequences = [s for sample in samples for s in sequences_of(sample)]
    lengths = [len(s.completion_token_ids) for s in sequences]
    known = read(path, run)
    if known is None or known.numel() != sum(lengths):
        computed = compute(sequences)
        known = torch.tensor([value for row in computed for value in row], dtype=torch.float32)
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        save_file({"logprobs": known}, partial, metadata={"run": run})
        partial.rename(path)
    rows = iter(torch.split(known, lengths))
    return [with_ref_logprobs(sample, lambda _: tuple(next(rows).tolist())) for sample in samples]


def read(path: Path, run: str) -> torch.Tensor | None:
    """Return what run `run` wrote; None if it wrote nothing that is complete."""
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("run") != run:
                return None
            tensor: torch.Tensor = file.get_tensor("logprobs")
            return tensor
    except (OSError, SafetensorError):
        return None
