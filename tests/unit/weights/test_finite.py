"""Weights with a number that is not finite are refused, whatever their dtype."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tuneloop.errors import WeightsRefused
from tuneloop.weights import finite


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_not_finite_is_found(
    tmp_path: Path, dtype: torch.dtype, value: float
) -> None:
    good, bad = torch.full((5, 3), -1.5, dtype=dtype), torch.zeros(7, dtype=dtype)
    save_file({"a": good, "b": bad}, tmp_path / "adapter_model.safetensors")
    finite.check_finite(tmp_path)
    bad[6] = value
    save_file({"a": good, "b": bad}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(WeightsRefused, match="b: not every number is finite"):
        finite.check_finite(tmp_path)


def test_the_largest_numbers_pass_and_pieces_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finite, "PIECE_BYTES", 16)
    largest = torch.tensor([torch.finfo(torch.float32).max] * 9)
    save_file({"a": largest, "n": torch.tensor([2**31 - 1] * 3)}, tmp_path / "m.safetensors")
    finite.check_finite(tmp_path)
    largest[-1] = float("inf")
    save_file({"a": largest}, tmp_path / "m.safetensors")
    with pytest.raises(WeightsRefused):
        finite.check_finite(tmp_path)
