"""The bytes of an answer's tokens, joined, are the answer's UTF-8."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.generation.prompts import Tokenization
from tuneloop.models.token_bytes import TokenTexts, byte_of_character

TEXTS = ("hello world", "the river\n\n  is deep", "漢字かな", "été", "😀👍🏽", "\ufffd", "日a本 b")


def sentencepiece_tokenizer() -> Any:
    """A vocabulary of blanks as U+2581 and bytes as <0xE6>, as Llama 2 and Gemma have it."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdehlorvw", "é"]
    vocabulary = {name: number for number, name in enumerate([*names, "▁r", "he"])}
    merges = [("▁", "r"), ("h", "e")]
    backend = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), "isolated")
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def byte_level(tiny_policy: Path) -> Any:
    return Tokenization(tiny_policy).tokenizer


@pytest.fixture(scope="module", params=["byte level", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, byte_level: Any) -> Any:
    return byte_level if request.param == "byte level" else sentencepiece_tokenizer()


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_join_to_the_text(text: str, tokenizer: Any) -> None:
    texts = TokenTexts(tokenizer)
    first, *ids = tokenizer(f"a{text}", add_special_tokens=False).input_ids
    if tokenizer.convert_ids_to_tokens(first) == "▁":
        first, *ids = ids
    joined = b"".join(texts[token].data for token in (first, *ids))
    assert joined.decode() == f"a{text}"
    whole = [texts[token] for token in ids if not texts[token].text.startswith("bytes:")]
    assert all(token.text.encode() == token.data for token in whole)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_tokens_of_any_text_join_to_it(text: str, byte_level: Any) -> None:
    texts = TokenTexts(byte_level)
    ids = byte_level(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert b"".join(texts[token].data for token in ids) == text.encode()


def test_half_a_character_is_spelled_in_bytes(tokenizer: Any) -> None:
    texts = TokenTexts(tokenizer)
    ids = tokenizer("漢", add_special_tokens=False).input_ids[-3:]
    halves = [texts[token] for token in ids]
    assert [half.data for half in halves] == [b"\xe6", b"\xbc", b"\xa2"]
    assert [half.text for half in halves] == ["bytes:\\xe6", "bytes:\\xbc", "bytes:\\xa2"]


def test_a_token_that_ends_the_answer_adds_nothing(tokenizer: Any) -> None:
    end = TokenTexts(tokenizer)[tokenizer.eos_token_id]
    assert (end.text, end.data) == (tokenizer.eos_token, b"")


def test_every_byte_has_a_character() -> None:
    assert sorted(byte_of_character.values()) == list(range(256))
    assert {byte_of_character[character] for character in "Ġ"} == {0x20}
