"""LoRA on a CPU in a batch that mixes adapters, against one product for each row."""

import pytest
import torch

pytestmark = pytest.mark.vllm
RANK, INPUT, OUTPUTS = 4, 6, (5, 3)


def expected_rows(
    y: torch.Tensor,
    x: torch.Tensor,
    halves_a: tuple[torch.Tensor, ...],
    halves_b: tuple[torch.Tensor, ...],
    slots: list[int],
) -> torch.Tensor:
    rows = []
    for row, slot in enumerate(slots):
        parts = [
            b[slot, 0] @ (a[slot, 0] @ x[row]) for a, b in zip(halves_a, halves_b, strict=True)
        ]
        rows.append(y[row] + (2.0 * torch.cat(parts) if slot >= 0 else 0.0))
    return torch.stack(rows)


@pytest.mark.parametrize("slots", [[0, -1, 1, 0], [1, 1, 1, 1], [-1, -1, -1, -1], [2, 0, 1, -1]])
def test_every_row_gets_the_product_of_its_own_adapter(slots: list[int]) -> None:
    from tuneloop.generation.vllm.worker import GroupedLora, groups_of

    generator = torch.Generator().manual_seed(0)
    halves_a = tuple(torch.randn(3, 1, RANK, INPUT, generator=generator) for _ in OUTPUTS)
    halves_b = tuple(torch.randn(3, 1, size, RANK, generator=generator) for size in OUTPUTS)
    for half_a, half_b in zip(halves_a, halves_b, strict=True):
        # What fills an adapter of rank 2 up.
        half_a[0, :, 2:] = 0
        half_b[0, ..., 2:] = 0
    x = torch.randn(len(slots), INPUT, generator=generator)
    y = torch.randn(len(slots), sum(OUTPUTS), generator=generator)
    expected = expected_rows(y, x, halves_a, halves_b, slots)
    lora = object.__new__(GroupedLora)
    lora.ranks = {0: 2, 1: RANK}
    lora.halves = {}
    lora.token_groups = groups_of(torch.tensor(slots))
    lora.add_lora_linear(y, x, halves_a, halves_b, 2.0, OUTPUTS)
    assert torch.allclose(y, expected, atol=1e-5)


def test_another_adapter_in_the_same_slot_is_used_at_once() -> None:
    from tuneloop.generation.vllm.worker import GroupedLora, groups_of

    generator = torch.Generator().manual_seed(0)
    [size] = OUTPUTS[:1]
    half_a = torch.randn(2, 1, RANK, INPUT, generator=generator)
    half_b = torch.randn(2, 1, size, RANK, generator=generator)
    x = torch.randn(2, INPUT, generator=generator)
    lora = object.__new__(GroupedLora)
    lora.halves = {}
    lora.token_groups = groups_of(torch.tensor([1, 1]))
    for rank in (2, 2, RANK):
        # As vLLM puts an adapter into its slot: in place, with zeros up to the largest rank.
        half_a[1, 0, :rank] = torch.randn(rank, INPUT, generator=generator)
        half_b[1, 0, :, :rank] = torch.randn(size, rank, generator=generator)
        lora.ranks = {1: rank}
        y = torch.zeros(2, size)
        lora.add_lora_linear(y, x, (half_a,), (half_b,), 2.0, (size,))
        expected = 2.0 * x @ half_a[1, 0, :rank].T @ half_b[1, 0, :, :rank].T
        assert torch.allclose(y, expected, atol=1e-5)
    # A view for each rank, none for each adapter.
    assert len(lora.halves) == 2
