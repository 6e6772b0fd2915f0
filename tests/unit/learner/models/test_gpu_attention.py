"""What kernels on a GPU are given of packed rows; the kernels themselves are stood in for."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, LlamaConfig

from tuneloop.errors import SettingsError
from tuneloop.learner.models import attention
from tuneloop.learner.models.architecture import run_body, take_packed_rows
from tuneloop.learner.models.attention import PACKED, VARLEN, varlen_rows
from tuneloop.learner.models.packing import pack
from tuneloop.learner.samples import TokenSequence
from tuneloop.learner.trainer.settings import TrainerSettings

CPU = torch.device("cpu")


def sequence(prompt: Sequence[int], completion: Sequence[int]) -> TokenSequence:
    return TokenSequence(
        prompt_token_ids=tuple(prompt),
        completion_token_ids=tuple(completion),
        generation_logprobs=(),
        temperature=1.0,
    )


ALONE = [sequence([1, 2, 3], [4, 5]), sequence([6], [7, 8, 9])]
SHARED = [*ALONE[:1], sequence([6, 7], [8, 9, 1]), sequence([6, 7], [2, 3])]
TURNS = [
    sequence([1, 2], [3]),
    sequence([1, 2], [5, 6]),
    sequence([1, 2, 3, 4], [7, 8]),
    sequence([1, 2, 3, 4], [8, 7, 9]),
]


def test_rows_of_sequences_alone() -> None:
    """Of 4 and 3 tokens: a completion's last predicts nothing."""
    rows = varlen_rows(pack(ALONE, CPU))
    assert rows.query_starts.tolist() == rows.key_starts.tolist() == [0, 4, 7]
    assert rows.query_starts.dtype == rows.key_starts.dtype == torch.int32
    assert (rows.longest_query, rows.longest_key) == (4, 4)
    assert rows.key_places is None


def test_rows_that_share_a_prompt() -> None:
    """Segments of 4, of a prompt of 2, and of what continues it: 1 and 2."""
    rows = varlen_rows(pack(SHARED, CPU))
    assert rows.query_starts.tolist() == [0, 4, 6, 7, 9]
    assert rows.key_starts.tolist() == [0, 4, 6, 9, 13]
    assert (rows.longest_query, rows.longest_key) == (4, 4)
    assert rows.key_places is not None
    assert rows.key_places.tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6, 4, 5, 7, 8]


def test_rows_of_turns_with_second_answers() -> None:
    """A prompt of 2, the rest of the next turn's, 2, and what continues each: 1, 2 and 1."""
    rows = varlen_rows(pack(TURNS, CPU))
    assert rows.query_starts.tolist() == [0, 2, 4, 5, 7, 8]
    assert rows.key_starts.tolist() == [0, 2, 6, 11, 17, 20]
    assert (rows.longest_query, rows.longest_key) == (2, 6)
    assert rows.key_places is not None
    last_keys = [[0, 1, 2, 3, 4], [0, 1, 2, 3, 5, 6], [0, 1, 7]]
    assert rows.key_places.tolist() == [
        0,
        1,
        0,
        1,
        2,
        3,
        *last_keys[0],
        *last_keys[1],
        *last_keys[2],
    ]


class Recorded:
    """Stands in for `varlen_attn`: torch's attention over one pair of rows after the other."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> Tensor:
        self.calls.append({"window": window_size, "grouped": enable_gqa, "dtype": query.dtype})
        assert query.dtype == key.dtype == value.dtype
        assert window_size[1] == 0
        parts = []
        for row in range(len(cu_seq_q) - 1):
            q = query[cu_seq_q[row] : cu_seq_q[row + 1]].transpose(0, 1)
            k, v = (t[cu_seq_k[row] : cu_seq_k[row + 1]].transpose(0, 1) for t in (key, value))
            assert q.shape[1] <= max_q
            assert k.shape[1] <= max_k
            # Places are counted from the end, as flash attention does.
            places = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
            visible = places >= torch.arange(k.shape[1])
            if window_size[0] >= 0:
                visible &= places - torch.arange(k.shape[1]) <= window_size[0]
            parts.append(
                scaled_dot_product_attention(
                    q, k, v, attn_mask=visible, scale=scale, enable_gqa=enable_gqa
                ).transpose(0, 1)
            )
        return torch.cat(parts)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    kernel = Recorded()
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", kernel)
    return kernel


@pytest.mark.parametrize("sequences", [ALONE, SHARED, TURNS], ids=["alone", "shared", "turns"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("key_heads", [2, 4])
def test_varlen_is_the_loop_over_segments(
    recorded: Recorded, sequences: Sequence[TokenSequence], window: int | None, key_heads: int
) -> None:
    torch.manual_seed(0)
    layout = pack(sequences, CPU)
    tokens = layout.input_ids.numel()
    query = torch.randn(1, 4, tokens, 8, dtype=torch.bfloat16, requires_grad=True)
    key, value = (
        torch.randn(1, key_heads, tokens, 8, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(2)
    )
    expected = attention._by_segment(query, key, value, layout, window, scaling=0.3)
    found = attention._by_varlen(query, key, value, layout, window, scaling=0.3)
    assert found.shape == expected.shape == (1, tokens, 4, 8)
    assert torch.allclose(found.float(), expected.float(), rtol=0.02, atol=0.02)
    assert recorded.calls[0]["window"] == ((-1, 0) if window is None else (2, 0))
    assert recorded.calls[0]["grouped"] == (key_heads == 2)
    pull = torch.randn(found.shape)
    for one, other in zip(
        torch.autograd.grad((found.float() * pull).sum(), (query, key, value)),
        torch.autograd.grad((expected.float() * pull).sum(), (query, key, value)),
        strict=True,
    ):
        assert torch.allclose(one.float(), other.float(), rtol=0.05, atol=0.05)


def test_where_places_are_is_found_once_for_all_layers(recorded: Recorded) -> None:
    layout = pack(SHARED, CPU)
    states = torch.randn(1, 2, layout.input_ids.numel(), 8, dtype=torch.bfloat16)
    attention._by_varlen(states, states, states, layout, None)
    rows = layout.masks[VARLEN]
    attention._by_varlen(states, states, states, layout, 3)
    assert layout.masks[VARLEN] is rows


@pytest.mark.parametrize("name", ["softcap", "s_aux"])
def test_what_varlen_has_nothing_for_is_named(recorded: Recorded, name: str) -> None:
    layout = pack(ALONE, CPU)
    states = torch.randn(1, 2, layout.input_ids.numel(), 8, dtype=torch.bfloat16)
    with pytest.raises(NotImplementedError, match=name):
        attention._by_varlen(states, states, states, layout, None, **{name: 1.0})
    with pytest.raises(NotImplementedError, match="float32"):
        attention._by_varlen(*(states.float(),) * 3, layout, None)
    assert not recorded.calls


def make_model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def test_a_kernel_that_does_not_run_leaves_its_place_to_flex_attention(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    assert take_packed_rows(model, "varlen")
    assert model.config._attn_implementation == VARLEN

    def fail(*arguments: Any, **named: Any) -> Any:
        raise NotImplementedError("packed attention has no softcap")

    model = make_model()
    monkeypatch.setitem(attention.AttentionInterface._global_mapping, VARLEN, fail)
    with caplog.at_level(logging.WARNING):
        assert take_packed_rows(model, "varlen")
    assert model.config._attn_implementation == PACKED
    assert "no varlen attention for LlamaForCausalLM" in caplog.text
    assert "softcap" in caplog.text


def test_a_kernel_that_gives_something_else_leaves_its_place_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def backwards(module: Any, query: Tensor, *rest: Any, **named: Any) -> Any:
        states, weights = attention.packed_attention(module, query, *rest, **named)
        return (states if named.get("layout") is None else states.flip(1)), weights

    model = make_model()
    monkeypatch.setitem(attention.AttentionInterface._global_mapping, VARLEN, backwards)
    with caplog.at_level(logging.WARNING):
        assert take_packed_rows(model, "varlen")
    assert model.config._attn_implementation == PACKED
    assert "states differ by" in caplog.text


def test_weights_in_float32_give_kernels_one_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast rotations in float32 make queries and keys wider than values."""
    model = make_model()
    assert take_packed_rows(model)
    seen: list[tuple[torch.dtype, ...]] = []

    def by_segment(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
        given = (query, key, value)
        seen.append(tuple(t.dtype for t in given))
        query, key, value = attention.in_one_precision(*given)
        assert query.dtype == key.dtype == value.dtype == torch.bfloat16
        return run(query, key, value, *rest, **options)

    run = attention._by_segment
    monkeypatch.setattr(attention, "_by_segment", by_segment)
    with torch.autocast("cpu", torch.bfloat16):
        run_body(model, pack(SHARED, CPU))
    # Why it is needed; if this ever fails, it no longer is.
    assert set(seen) == {(torch.float32, torch.float32, torch.bfloat16)}


def test_varlen_is_for_gpus_only() -> None:
    assert TrainerSettings(device="cuda", packed_attention="varlen").packed_attention == "varlen"
    with pytest.raises(SettingsError, match="packed_attention"):
        TrainerSettings(packed_attention="varlen")
