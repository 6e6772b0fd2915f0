"""Sampling, detokenization, coalescing, tokenization, the joining of deltas, settings."""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.errors import InvalidRequest, SettingsError
from tuneloop.generation.coalescing import coalesce, message_seconds
from tuneloop.generation.completions import Final
from tuneloop.generation.partial_completion import Delta
from tuneloop.generation.prompts import Tokenization
from tuneloop.generation.servicer import join_deltas
from tuneloop.generation.settings import GenerationSettings
from tuneloop.generation.transformers.detokenization import Detokenizer
from tuneloop.generation.transformers.sampling import choose, processed_logprobs
from tuneloop.rollouts import ChatMessage, FinishReason, Prompt, SamplingParameters
from tuneloop.settings import load

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])


def test_temperature_and_penalties_shape_the_distribution() -> None:
    sampling = SamplingParameters(
        temperature=0.5, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={3: 4.0}
    )
    expected = torch.log_softmax(torch.tensor([2.0 - 0.5 - 0.5, 1.0, 0.0, 3.0]) / 0.5, dim=-1)
    assert torch.allclose(processed_logprobs(LOGITS, sampling, Counter({0: 2})), expected)


def test_top_k_and_top_p_leave_the_likeliest_tokens() -> None:
    kept = processed_logprobs(LOGITS, SamplingParameters(temperature=1.0, top_k=2), {})
    assert kept.isfinite().tolist() == [True, True, False, False]
    assert kept.exp().sum().item() == pytest.approx(1.0)
    nucleus = processed_logprobs(LOGITS, SamplingParameters(temperature=1.0, top_p=0.7), {})
    assert nucleus.isfinite().tolist() == [True, True, False, False]
    single = processed_logprobs(LOGITS, SamplingParameters(temperature=1.0, top_p=1e-9), {})
    assert single.isfinite().tolist() == [True, False, False, False]


def test_greedy_takes_the_best_and_reports_it_at_temperature_one() -> None:
    logprobs = processed_logprobs(LOGITS, SamplingParameters(temperature=0.0, top_k=1), {})
    assert torch.allclose(logprobs, torch.log_softmax(LOGITS, dim=-1))
    assert choose(logprobs, 0.0, torch.Generator()) == 0


def test_sampling_frequencies_follow_the_logprobs() -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs = processed_logprobs(LOGITS, SamplingParameters(temperature=1.0), {})
    counts = Counter(choose(logprobs, 1.0, generator) for _ in range(4000))
    for token, logprob in enumerate(logprobs.tolist()):
        assert counts[token] / 4000 == pytest.approx(math.exp(logprob), abs=0.03)


class ByteTokenizer:
    """Token ids are bytes: the hardest case for streaming."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return bytes(token_ids).decode(errors="replace")


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_pieces_add_up_to_the_text_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    detokenizer = Detokenizer(tokenizer=ByteTokenizer(), stop=stop)
    data, pieces = text.encode(), []
    for position, byte in enumerate(data):
        pieces.append(detokenizer.add(byte, ends=position == len(data) - 1))
        if detokenizer.stopped:
            break
    cuts = [text.index(s) for s in stop if s in text]
    if not cuts:
        assert "".join(pieces) == text
    else:
        # Which of several stop strings is complete first decides; none of them is in the text.
        assert detokenizer.stopped
        assert text.startswith("".join(pieces))
        assert not any(s in "".join(pieces) for s in stop)
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


async def test_coalescing_keeps_order_and_sends_the_first_item_at_once() -> None:
    async def source() -> AsyncGenerator[int, None]:
        for i in range(50):
            yield i
            await asyncio.sleep(0.001)

    batches = [batch async for batch in coalesce(source(), lambda: 0.02)]
    assert [i for batch in batches for i in batch] == list(range(50))
    assert len(batches[0]) < 5
    assert len(batches) < 40


def test_many_streams_on_few_cores_send_fewer_messages_each() -> None:
    assert message_seconds(1, cores=2) == 0.03
    assert message_seconds(8, cores=2) == 8 / 80
    assert message_seconds(32, cores=2) == 0.25
    assert message_seconds(32, cores=16) == 32 / 640
    assert message_seconds(1000, cores=2) == 0.25


async def test_coalescing_passes_an_error_on_after_the_items_before_it() -> None:
    async def source() -> AsyncGenerator[int, None]:
        yield 1
        raise KeyError("broken")

    stream = coalesce(source(), lambda: 0.01)
    assert await anext(stream) == [1]
    with pytest.raises(KeyError):
        await anext(stream)


async def test_closing_a_coalesced_stream_closes_its_source() -> None:
    closed = asyncio.Event()

    async def source() -> AsyncGenerator[int, None]:
        try:
            yield 1
            await asyncio.Future()
        finally:
            closed.set()

    stream = coalesce(source(), lambda: 0.01)
    await anext(stream)
    await stream.aclose()
    assert closed.is_set()


def make_delta(index: int, token: int) -> Delta:
    return Delta(
        index=index,
        text=str(token),
        token_ids=(token,),
        logprobs=(-1.0,),
        top_logprobs=(),
        policy_version=0,
    )


def test_deltas_of_one_completion_are_joined_up_to_its_final() -> None:
    final = Final(
        index=0,
        completion_id="c",
        token_ids=(1, 2),
        logprobs=(-1.0, -1.0),
        finish_reason=FinishReason.STOP,
        policy_version_spans=(),
        policy_version=0,
        prompt_tokens=1,
    )
    events = join_deltas(
        [make_delta(0, 1), make_delta(1, 7), make_delta(0, 2), final, make_delta(1, 8)]
    )
    assert [getattr(e, "token_ids", None) for e in events] == [(1, 2), (7, 8), (1, 2)]
    assert events[2] is final


@pytest.fixture(scope="module")
def tokenization(tiny_policy: Path) -> Tokenization:
    return Tokenization(tiny_policy)


def test_a_conversation_is_rendered_for_the_next_answer(tokenization: Tokenization) -> None:
    turns = (ChatMessage(role="user", content="hello"),)
    prompt = tokenization.tokenize(Prompt(messages=turns))
    assert prompt.text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.token_ids[0] == 1
    assert prompt.token_ids.count(1) == 2
    assert tokenization.decode(prompt.token_ids, skip_special_tokens=False) == prompt.text
    assert tokenization.stop_token_ids == {2}


def test_text_and_token_ids_are_taken_as_they_are(tokenization: Tokenization) -> None:
    plain = tokenization.tokenize(Prompt(text="the sea"))
    assert tokenization.decode(plain.token_ids) == "the sea"
    given_ids = tokenization.tokenize(Prompt(token_ids=plain.token_ids))
    assert given_ids == plain


def test_what_a_template_cannot_render_is_the_callers_mistake(
    tokenization: Tokenization, tiny_policy: Path
) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        tokenization.tokenize(Prompt(messages=()))
    turns = (ChatMessage(role="robot", content="hello"),)
    strict = Tokenization(tiny_policy)
    strict.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] != 'user' %}"
        "{{ raise_exception('only users may speak') }}{% endif %}{% endfor %}"
    )
    with pytest.raises(InvalidRequest, match="only users may speak"):
        strict.tokenize(Prompt(messages=turns))
    strict.tokenizer.chat_template = None
    with pytest.raises(InvalidRequest, match="no chat template"):
        strict.tokenize(Prompt(messages=turns))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ENGINE", "tensorflow", "auto"),
        ("POLICY", "a.b", "letters"),
        ("MAX_LORA_RANK", "0", "1 to 512"),
        ("MODLE", "/x", "TUNELOOP_GENERATION_MODEL"),
    ],
)
def test_a_wrong_setting_is_named_with_what_it_accepts(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv("TUNELOOP_GENERATION_MODEL", "/models/x")
    monkeypatch.setenv(f"TUNELOOP_GENERATION_{name}", value)
    with pytest.raises(SettingsError, match=message):
        load(GenerationSettings)
