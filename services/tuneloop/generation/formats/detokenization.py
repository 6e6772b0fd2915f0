"""Decodes a completion token by token, and finds stop strings in its text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

CONTEXT_TOKENS = 6
"""Tokens decoded again with each new one, as its text depends on them."""


@dataclass(slots=True, kw_only=True)
class StopStrings:
    """Passes a text on up to the first stop string, never half of one."""

    stop: Sequence[str]
    text: str = ""
    """All text so far; what stands after `sent` is held back."""
    sent: int = 0
    stopped_by: str = ""
    """The stop string that was found; empty: none."""

    def add(self, text: str, *, ends: bool) -> str:
        """Add text and return what to send; with `ends` nothing is held back.

        Sets `stopped_by`, and cuts the text, if a stop string is complete.
        """
        self.text += text
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


@dataclass(slots=True, kw_only=True)
class Detokenizer:
    """Turns token ids into text, never returning half a character."""

    tokenizer: Any
    hidden: frozenset[int] | None = None
    """Tokens that are left out of the text; None: all special ones."""
    token_ids: list[int] = field(default_factory=list)
    prefix_start: int = 0
    read_end: int = 0

    def add(self, token_id: int, *, ends: bool) -> str:
        """Return the text of a new token; empty while it ends inside a character."""
        self.token_ids.append(token_id)
        before = self.decode(self.token_ids[self.prefix_start : self.read_end])
        after = self.decode(self.token_ids[self.prefix_start :])
        if after.endswith("\ufffd") and not ends:
            return ""
        self.read_end = len(self.token_ids)
        self.prefix_start = max(self.prefix_start, self.read_end - CONTEXT_TOKENS)
        return after[len(before) :]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode, without the hidden tokens."""
        if self.hidden is None:
            return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))
        shown = [token for token in token_ids if token not in self.hidden]
        return str(self.tokenizer.decode(shown, skip_special_tokens=False))
