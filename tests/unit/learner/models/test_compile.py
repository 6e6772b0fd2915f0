"""Layers are really compiled, whatever is done to them beside it; counted in dynamo's graphs."""

import functools
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)
from transformers import AutoModelForCausalLM, LlamaConfig

from tuneloop.learner.models import architecture, attention
from tuneloop.learner.models.architecture import (
    CompiledForward,
    checkpoint_layers,
    compile_layers,
    run_body,
    take_packed_rows,
)
from tuneloop.learner.models.lora import add_adapter
from tuneloop.learner.models.packing import TokenLayout, pack, pad
from tuneloop.learner.samples import TokenSequence

CPU = torch.device("cpu")
ROWS = 20


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(CompiledForward, "failed", False)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def make_model(*, lora: bool, packing: bool) -> tuple[Any, Any]:
    """A tiny model, and the adapter on it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    assert not packing or take_packed_rows(model)
    return model, add_adapter(model, 2, 4, 0) if lora else None


def make_rows(number: int) -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(number)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(64, (length,), generator=generator).tolist())

    prompt = draw(3 + number)
    return [
        TokenSequence(
            prompt_token_ids=prompt,
            completion_token_ids=draw(length),
            generation_logprobs=(),
            temperature=1.0,
        )
        for length in (4, 2 + number % 5)
    ]


def run(model: Any, adapted: Any, number: int, *, packing: bool) -> list[Tensor]:
    """A pass with gradients, one without, and one of the reference; returns the gradients."""
    layout = (pack if packing else pad)(make_rows(number), CPU)
    with torch.no_grad():
        run_body(model, layout)
        if adapted is not None:
            with adapted.disable_adapter():
                run_body(model, layout)
    run_body(model, layout).square().sum().backward()  # type: ignore[no-untyped-call]
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = [p.grad.clone() for p in trained if p.grad is not None]
    model.zero_grad()
    return gradients


GRAPHS = {(False, False): 2, (False, True): 4, (True, False): 8, (True, True): 14}
"""By packing and LoRA: attention over a packed row is not compiled, and splits a layer in two."""


COMBINATIONS = [
    # The others, packed rows above all, take up to half a minute each.
    pytest.param(*chosen, marks=[pytest.mark.slow] if any(chosen) else [])
    for chosen in itertools.product([False, True], repeat=3)
]


@pytest.mark.parametrize(("lora", "packing", "checkpointing"), COMBINATIONS)
def test_layers_are_compiled_once_for_rows_of_all_lengths(
    checkpointing: bool, packing: bool, lora: bool
) -> None:
    model, adapted = make_model(lora=lora, packing=packing)
    expected = run(model, adapted, 3, packing=packing)
    compile_layers(model, backend="aot_eager")
    if checkpointing:
        assert checkpoint_layers(model)
    found = run(model, adapted, 3, packing=packing)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)
    for number in (1, 2):
        run(model, adapted, number, packing=packing)
    first = counters["stats"]["unique_graphs"]
    assert 1 <= first <= GRAPHS[packing, lora] + 4
    for number in range(4, 4 + ROWS):
        run(model, adapted, number, packing=packing)
    assert counters["stats"]["unique_graphs"] == first
    assert not CompiledForward.failed


PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm}
OF_LAYER = 7
"""Queries, keys, values, output, gate, up and down."""


class Products(TorchDispatchMode):
    """Counts matrix products, those of compiled code too."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Whether dynamo compiles in spite of it."""
        return True

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), named: Any = None
    ) -> Any:
        self.count += function.overloadpacket in PRODUCTS
        return function(*args, **(named or {}))


def gradients_and_products(model: Any) -> tuple[list[Tensor], int]:
    """Of one pass with gradients of a padded batch."""
    layout = pad(make_rows(3), CPU)
    with Products() as products:
        run_body(model, layout).square().sum().backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return gradients, products.count


@pytest.mark.parametrize(
    ("backend", "of_layer"),
    # As it is, a layer is computed again up to what its backward pass needs last.
    [("", OF_LAYER - 1), ("aot_eager_decomp_partition", OF_LAYER)],
)
def test_layers_that_keep_their_activations_are_not_computed_again(
    backend: str, of_layer: int
) -> None:
    model, _ = make_model(lora=False, packing=False)
    expected, forward_and_backward = gradients_and_products(model)
    assert forward_and_backward == 2 * 3 * OF_LAYER
    if backend:
        compile_layers(model, backend=backend)
    for kept in (0, 2, 1):
        assert checkpoint_layers(model, kept=kept)
        gradients_and_products(model)  # compiles
        found, products = gradients_and_products(model)
        assert products - forward_and_backward == (2 - kept) * of_layer
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
    assert not CompiledForward.failed
    assert counters["stats"]["unique_graphs"] == (1 if backend else 0)


def test_a_compiled_layer_keeps_less_without_a_checkpoint_too() -> None:
    """It chooses itself what to compute again, as long as that is cheap."""
    model, _ = make_model(lora=False, packing=False)
    layout = pad(make_rows(9), CPU)
    as_it_is = kept_numbers(model, layout)
    compile_layers(model, backend="aot_eager_decomp_partition")
    run_body(model, layout)
    compiled = kept_numbers(model, layout)
    assert compiled < 0.85 * as_it_is
    checkpoint_layers(model)
    assert kept_numbers(model, layout) < 0.3 * compiled


def kept_numbers(model: Any, layout: TokenLayout) -> int:
    """Numbers that a pass keeps for its backward pass, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run_body(model, layout)
    return sum(t.untyped_storage().nbytes() // t.element_size() for t in kept.values())


@pytest.mark.slow
def test_operations_of_compiled_code_cannot_be_chosen_to_be_kept() -> None:
    """With inductor, a checkpoint that is told to keep products computes them all again."""
    keep_products = functools.partial(
        create_selective_checkpoint_contexts, [torch.ops.aten.mm.default]
    )

    def layer(states: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
        return states + torch.sin(states @ inner) @ outer

    def products(backend: str | None, context: Any) -> int:
        torch.manual_seed(0)
        weights = [torch.randn(16, 16, requires_grad=True) for _ in range(3)]
        forward = torch.compile(layer, backend=backend) if backend else layer
        for _ in range(2):
            with Products() as counted:
                states = checkpoint(forward, *weights, use_reentrant=False, context_fn=context)
                states.sum().backward()
        return counted.count

    assert products(None, keep_products) < products(None, noop_context_fn)
    assert products("inductor", keep_products) == products("inductor", noop_context_fn)


@pytest.mark.slow
def test_a_checkpoint_inside_what_is_compiled_is_not_compiled() -> None:
    """Why the order matters: this is what it was."""
    model, adapted = make_model(lora=False, packing=False)
    checkpoint_layers(model)
    for layer in architecture.layers_of(model):
        layer.compile(dynamic=True, backend="aot_eager")
    run(model, adapted, 3, packing=False)
    with_gradients = counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    counters.clear()
    model, adapted = make_model(lora=False, packing=False)
    compile_layers(model, backend="aot_eager")
    checkpoint_layers(model)
    run(model, adapted, 3, packing=False)
    assert with_gradients < counters["stats"]["unique_graphs"]


def test_layers_that_cannot_be_compiled_say_so_once_and_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, adapted = make_model(lora=False, packing=False)
    expected = run(model, adapted, 3, packing=False)

    def no_compiler(graph: Any, inputs: Any) -> Callable[..., Any]:
        raise RuntimeError("Failed to find C compiler")

    compile_layers(model, backend=no_compiler)  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR):
        found = run(model, adapted, 3, packing=False)
    assert all(map(torch.equal, found, expected))
    said = [r.getMessage() for r in caplog.records if "could not be compiled" in r.getMessage()]
    assert len(said) == 1
    for part in ("gcc", "TORCHINDUCTOR_CACHE_DIR", "noexec", "Failed to find C compiler"):
        assert part in said[0]


def test_a_family_without_layers_is_refused_only_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tuneloop.errors import SettingsError

    model, _ = make_model(lora=False, packing=False)
    monkeypatch.setattr(architecture, "GradientCheckpointingLayer", tuple)
    compile_layers(model, needed=False)
    assert not checkpoint_layers(model, needed=False)
    assert "no compile" in caplog.text
    with pytest.raises(SettingsError, match="compile"):
        compile_layers(model)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.slow
def test_the_compiled_block_mask_is_the_plain_one(window: int | None) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    make = attention._block_mask_maker("eager")
    for number in (1, 5):
        layout = pack(make_rows(number), CPU)
        tokens = layout.input_ids.numel()
        sees = attention.visibility(layout, window)
        found = make(sees, None, None, tokens, tokens, device="cpu")
        expected = create_block_mask(sees, None, None, tokens, tokens, device="cpu")
        assert torch.equal(found.to_dense(), expected.to_dense())


def test_flex_attention_that_cannot_be_built_is_an_error_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._dynamo.exc import TorchDynamoException

    model, _ = make_model(lora=False, packing=False)

    def fail(*arguments: Any, **named: Any) -> Any:
        raise TorchDynamoException("Failed to find C compiler")

    monkeypatch.setattr(attention, "_by_segment", fail)
    with caplog.at_level(logging.ERROR):
        assert not take_packed_rows(model)
    assert "no packing for LlamaForCausalLM" in caplog.text
    assert "gcc" in caplog.text
    assert "Failed to find C compiler" in caplog.text
