"""The bytes that single tokens stand for: of a byte-level vocabulary some are half a character."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

REPLACEMENT = "\ufffd"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""How SentencePiece spells the bytes of characters that it has no token for."""


def printable_bytes() -> Mapping[str, int]:
    """Return the byte of each character in which byte-level vocabularies spell their tokens.

    Printable characters of Latin-1 stand for themselves, the other bytes for U+0100 and what
    follows, in order (Radford et al. 2019, https://github.com/openai/gpt-2, `bytes_to_unicode`).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }


byte_of_character = printable_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenText:
    """A token as log-probs show it."""

    text: str
    """Where it is no whole character: `bytes:` and its bytes, as OpenAI spells them."""
    data: bytes
    """What it adds to the answer's UTF-8; nothing for a token that ends a turn and the like."""


class TokenTexts:
    """The tokens of a tokenizer, each as it reads within a text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self._special = {id for id, token in added if token.special} | {*tokenizer.all_special_ids}
        # A first token of a text may lose its blank.
        before = tokenizer("a", add_special_tokens=False).input_ids[-1:]
        self._before = [id for id in before if id not in self._special]
        self._known: dict[int, TokenText] = {}

    def __getitem__(self, token_id: int) -> TokenText:
        """Return a token's text."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._text_of(token_id)
        return known

    def _text_of(self, token_id: int) -> TokenText:
        if token_id in self._special:
            return TokenText(text=self._decode(token_id), data=b"")
        text = self._decode(*self._before, token_id)[len(self._decode(*self._before)) :]
        data = self._bytes_of(token_id) if REPLACEMENT in text else None
        if data is None:
            return TokenText(text=text, data=text.encode())
        try:
            return TokenText(text=data.decode(), data=data)
        except UnicodeDecodeError:
            spelled = "".join(f"\\x{byte:02x}" for byte in data)
            return TokenText(text=f"bytes:{spelled}", data=data)

    def _bytes_of(self, token_id: int) -> bytes | None:
        """Return the bytes by the token's name in the vocabulary, None if it does not say."""
        name = str(self._tokenizer.convert_ids_to_tokens(token_id))
        if found := BYTE_TOKEN.fullmatch(name):
            return bytes([int(found[1], 16)])
        if all(character in byte_of_character for character in name):
            return bytes(byte_of_character[character] for character in name)
        return None

    def _decode(self, *token_ids: int) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))
