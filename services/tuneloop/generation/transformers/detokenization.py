"""Decodes a completion token by token, and finds stop strings in its text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

CONTEXT_TOKENS = 6
"""Tokens decoded again with each new one, as its text depends on them."""


@dataclass(slots=True, kw_only=True)
class Detokenizer:
    """Turns token ids into text, never returning half a character or half a stop string."""

    tokenizer: Any
    stop: Sequence[str]
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    """All text so far; what stands after `sent` is held back."""
    sent: int = 0
    prefix_start: int = 0
    read_end: int = 0
    stopped_by: str = ""
    """The stop string that was found; empty: none."""

    def add(self, token_id: int, *, ends: bool) -> str:
        """Add a token and return the text to send; with `ends` nothing is held back.

        Sets `stopped_by`, and cuts the text, if a stop string is complete.
        """
        self.token_ids.append(token_id)
        self.text += self.new_text(ends)
        for stop in self.stop:
            # It may start in the text held back, never in the text sent.
            found = self.text.find(stop, self.sent)
            if found >= 0:
                self.stopped_by = stop
                self.text = self.text[:found]
        held_back = (
            0 if ends or self.stopped_by else max((len(s) - 1 for s in self.stop), default=0)
        )
        end = max(self.sent, len(self.text) - held_back)
        piece, self.sent = self.text[self.sent : end], end
        return piece

    def new_text(self, ends: bool) -> str:
        """Return the text of the new tokens; empty while they end inside a character."""
        before = self.decode(self.token_ids[self.prefix_start : self.read_end])
        after = self.decode(self.token_ids[self.prefix_start :])
        if after.endswith("\ufffd") and not ends:
            return ""
        self.read_end = len(self.token_ids)
        self.prefix_start = max(self.prefix_start, self.read_end - CONTEXT_TOKENS)
        return after[len(before) :]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode, leaving out special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))
