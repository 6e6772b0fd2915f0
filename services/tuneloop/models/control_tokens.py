"""Text that spells a chat template's control tokens stays text.

`<|im_end|>` in a user's message would otherwise be the token that ends their turn, and what follows
a turn of its own. Such spellings are put aside while the template is rendered, and encoded as the
text they are. A prompt without any is encoded as ever.
"""

import re
from collections.abc import Iterator
from typing import Any

FIRST, LAST = 0xF0000, 0xFFFFD
"""Characters of the private-use plane 15: each stands for a spelling that was put aside."""


class ControlTokens:
    """The control tokens of a tokenizer: special ones, and tags that its template writes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        template = str(tokenizer.chat_template or "")
        added = [t for t in tokenizer.added_tokens_decoder.values() if len(t.content.strip()) > 1]
        special = {token.content for token in added if token.special}
        tags = {t.content for t in added if any(tag in template for tag in pair_of(t.content))}
        self._pattern = pattern_of(special | tags)
        self._special = pattern_of(special)

    def aside(self) -> "Aside":
        """Return a place for the spellings in one conversation."""
        return Aside(self._pattern, self._special)

    def encode(self, rendered: str, aside: "Aside") -> tuple[int, ...]:
        """Return the token ids of a rendered conversation, spellings put aside as text."""
        ids: list[int] = []
        for text, is_aside in aside.parts(rendered):
            ids += self._as_text(text) if is_aside else self._encode(text)
        return tuple(ids)

    def _as_text(self, spelling: str) -> list[int]:
        # A token is only found whole.
        first, rest = spelling[:1], spelling[1:]
        inner = self._pattern.search(rest)
        if inner is None:
            return self._encode(first) + self._encode(rest)
        return self._encode(first + rest[: inner.start()]) + self._as_text(rest[inner.start() :])

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids) if text else []


def pair_of(tag: str) -> tuple[str, str]:
    """Return a tag, and the one that ends or begins what it begins or ends."""
    return tag, f"<{tag[2:]}" if tag.startswith("</") else tag.replace("<", "</", 1)


def pattern_of(spellings: set[str]) -> re.Pattern[str]:
    """Return what finds the spellings, and the characters that stand for them."""
    longest_first = sorted(map(re.escape, spellings), key=len, reverse=True)
    return re.compile("|".join((*longest_first, f"[{chr(FIRST)}-{chr(LAST)}]")))


class Aside:
    """Spellings of control tokens that were put aside, in order."""

    def __init__(self, pattern: re.Pattern[str], special: re.Pattern[str]) -> None:
        self._pattern = pattern
        self._special = special
        self._spellings: list[str] = []

    def put(self, value: Any, *, keep_tags: bool = False) -> Any:
        """Return a text, or JSON with texts in it, with a character for each spelling.

        Past the last of those characters spellings are left out. `keep_tags` is for the model's own
        answers: templates look for tags in them, such as those of its reasoning.
        """
        match value:
            case str():
                return (self._special if keep_tags else self._pattern).sub(self._put_one, value)
            case list():
                return [self.put(item, keep_tags=keep_tags) for item in value]
            case dict():
                return {k: self.put(item, keep_tags=keep_tags) for k, item in value.items()}
        return value

    def _put_one(self, found: re.Match[str]) -> str:
        if FIRST + len(self._spellings) > LAST:
            return ""
        self._spellings.append(found[0])
        return chr(FIRST + len(self._spellings) - 1)

    def parts(self, rendered: str) -> Iterator[tuple[str, bool]]:
        """Give the parts of a rendered conversation, and whether each is a spelling put aside."""
        if not self._spellings:
            yield rendered, False
            return
        for part in re.split(f"([{chr(FIRST)}-{chr(LAST)}])", rendered):
            is_aside = len(part) == 1 and FIRST <= ord(part) < FIRST + len(self._spellings)
            yield (self._spellings[ord(part) - FIRST], True) if is_aside else (part, False)

    def restore(self, rendered: str) -> str:
        """Return a rendered conversation as it reads."""
        return "".join(text for text, _ in self.parts(rendered))
