"""vLLM's formats of thoughts, by tags and token by token."""

from pathlib import Path
from typing import Any

import pytest
from support.thinking_models import make_thinking_tokenizer

from tuneloop.errors import InvalidRequest, SettingsError
from tuneloop.generation.formats.tags import TagFormat
from tuneloop.generation.vllm.reasoning import VllmReasoningFormat, vllm_reasoning_format

pytest.importorskip("vllm")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_thinking_tokenizer(tmp_path_factory.mktemp("tokens"), "qwen3")


def test_formats_with_tags_are_read_by_them(tokenizer: Any) -> None:
    for name in ("qwen3", "deepseek_r1", "step3p5"):
        form = vllm_reasoning_format(name, tokenizer)
        assert isinstance(form, TagFormat)
        assert (form.begin, form.end) == ("<think>", "</think>")


def test_others_are_fed_token_by_token(tokenizer: Any) -> None:
    form = vllm_reasoning_format("granite", tokenizer)
    assert isinstance(form, VllmReasoningFormat)
    parser = form.parser("")
    thought = answer = ""
    words = ["Here", " is", " my", " thought", " process", ":", " hm", " so", " "]
    words += ["Here", " is", " my", " response", ":", " yes", " sir"]
    for number, word in enumerate(words, start=1):
        more = parser.feed(word, number, ends=number == len(words))
        thought, answer = thought + more[0], answer + more[1]
    assert (thought.strip(), answer.strip()) == ("hm so", "yes sir")
    assert not parser.in_thought
    assert 0 < parser.thought_tokens < len(words)
    with pytest.raises(InvalidRequest, match="granite") as refused:
        form.after_thought({"type": "any_text"}, "", calls=False, budget=None)
    assert refused.value.param == "response_format"


def test_a_format_that_does_not_suit_the_model_is_refused(
    tokenizer: Any, tiny_policy: Path
) -> None:
    with pytest.raises(SettingsError, match=r"telepathy: must be auto, none or one of .*granite"):
        vllm_reasoning_format("telepathy", tokenizer)
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(tiny_policy)
    with pytest.raises(SettingsError, match="deepseek_r1 does not suit this model"):
        vllm_reasoning_format("deepseek_r1", plain)
