"""LoRA on a CPU in a batch that mixes adapters, against one product for each row."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tuneloop.generation.vllm import merged

pytestmark = pytest.mark.vllm
RANK, INPUT, OUTPUTS = 4, 6, (5, 3)
ADAPTERS = [10, 11, 12]
"""By slot."""


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


class Manager:
    """As much of vLLM's LoRA manager as merging asks for, with one layer joined of two."""

    def __init__(self, folder: Path, generator: torch.Generator) -> None:
        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        self.parts = [random(size, INPUT) for size in OUTPUTS]
        names = ("layer.q_proj", "layer.k_proj")
        tensors = zip(names, self.parts, strict=True)
        save_file({f"{name}.weight": t for name, t in tensors}, folder / "model.safetensors")
        layer: Any = nn.Module()
        layer.weight = nn.Parameter(torch.cat(self.parts), requires_grad=False)
        layer.cpu_linear = nn.functional.linear
        self.layer = layer
        self.module: Any = SimpleNamespace(
            base_layer=layer,
            output_slices=OUTPUTS,
            lora_a_stacked=tuple(random(3, 1, RANK, INPUT) for _ in OUTPUTS),
            lora_b_stacked=tuple(random(3, 1, size, RANK) for size in OUTPUTS),
        )
        self.modules = {"layer.qkv_proj": self.module}
        self.packed_modules = {"layer.qkv_proj": list(names)}
        self.lora_index_to_id = list(ADAPTERS)

    def _get_lora_layer_weights(self, adapter: object, name: str) -> bool:
        return adapter != "one without such a layer"

    def expected(self, x: torch.Tensor, slots: list[int]) -> torch.Tensor:
        halves = (self.module.lora_a_stacked, self.module.lora_b_stacked)
        y = x @ torch.cat(self.parts).T
        return expected_rows(y, x / 2, *halves, slots)

    def computed(self, lora: Any, x: torch.Tensor, slots: list[int]) -> torch.Tensor:
        """What vLLM computes for a batch: the layer, and then the adapters."""
        from tuneloop.generation.vllm.worker import groups_of

        lora.token_groups = groups_of(torch.tensor(slots))
        lora.use_merged(ADAPTERS)
        y: torch.Tensor = self.layer.cpu_linear(x, self.layer.weight, None)
        halves = (self.module.lora_a_stacked, self.module.lora_b_stacked)
        lora.add_lora_linear(y, x, *halves, 1.0, OUTPUTS)
        return y


@pytest.fixture
def manager(tmp_path: Path) -> Manager:
    return Manager(tmp_path, torch.Generator().manual_seed(0))


def test_an_adapter_that_all_use_is_in_the_weights_and_in_no_other_batch(
    manager: Manager, tmp_path: Path
) -> None:
    from tuneloop.generation.vllm.worker import GroupedLora

    lora: Any = object.__new__(GroupedLora)
    lora.halves = {}
    lora.merged = {}
    for slot in (1, 0, 2):
        adapter = SimpleNamespace(id=ADAPTERS[slot])
        merged.start_merging(tmp_path, manager, slot, adapter, [lora]).join(10)
    # No more than the newest two.
    assert {number: len(layers) for number, layers in lora.merged.items()} == {10: 1, 12: 1}
    x = torch.randn(4, INPUT, generator=torch.Generator().manual_seed(1))
    used = []
    for slots in ([0] * 4, [0, 1, -1, 2], [2] * 4, [0] * 4, [1] * 4, [-1] * 4, [2] * 4):
        found = manager.computed(lora, x, slots)
        assert torch.allclose(found, manager.expected(x, slots), atol=1e-4)
        used.append(manager.layer.cpu_linear is not manager.layer.plain_linear)
    assert used == [True, False, True, True, False, False, True]
    # A slot whose adapter is merged no more.
    lora.merged = {}
    found = manager.computed(lora, x, [2] * 4)
    assert torch.allclose(found, manager.expected(x, [2] * 4), atol=1e-4)
    assert manager.layer.cpu_linear is manager.layer.plain_linear


def test_an_adapter_whose_slot_was_given_away_is_not_merged(
    manager: Manager, tmp_path: Path
) -> None:
    lora: Any = SimpleNamespace(merged={})
    with merged.one_at_a_time:
        thread = merged.start_merging(tmp_path, manager, 0, SimpleNamespace(id=10), [lora])
        manager.lora_index_to_id[0] = 13
    thread.join(10)
    assert lora.merged == {}


def test_what_cannot_be_merged_is_computed_by_itself(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge() -> list[merged.MergedLayer]:
        return merged.merge_adapter(tmp_path, manager, 0, "adapter")

    assert len(merge()) == 1
    assert merged.merge_adapter(tmp_path, manager, 0, "one without such a layer") == []
    with monkeypatch.context() as patched:
        patched.setattr(merged, "available_memory", lambda: 0)
        assert merge() == []
    manager.packed_modules = {}
    assert merge() == []  # no file has the joined weight
    manager.packed_modules = {"layer.qkv_proj": ["layer.k_proj", "layer.q_proj"]}
    assert not merged.are_as_read(merge())  # the layer computes something else
    manager.packed_modules = {"layer.qkv_proj": ["layer.q_proj"]}
    manager.module.output_slices = OUTPUTS[:1]
    manager.module.lora_a_stacked = manager.module.lora_a_stacked[:1]
    manager.module.lora_b_stacked = manager.module.lora_b_stacked[:1]
    assert not merged.are_as_read(merge())
    del manager.module.output_slices
    assert merge() == []  # a mixture of experts has none
