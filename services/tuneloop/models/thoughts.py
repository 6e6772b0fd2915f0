"""Where the thought of a reasoning model ends and its answer begins, in token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DELIMITERS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"),
)
"""What models put around their thoughts: Qwen3, DeepSeek and many others; Magistral; Seed-OSS;
Command A; gpt-oss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtDelimiters:
    """The tokens that one model puts before and after a thought."""

    start: tuple[int, ...]
    end: tuple[int, ...]

    def thought_of(self, completion: Sequence[int], prompt: Sequence[int] = ()) -> int:
        """Return how many of the first tokens of a completion are its thought.

        Delimiters are counted. All of them are, if the thought did not end; none, if the completion
        does not begin with one and the prompt does not leave one open, as some templates do.
        """
        begun = tuple(completion[: len(self.start)]) == self.start
        if not begun and not self._is_open(prompt):
            return 0
        ends = places(completion, self.end)
        return ends[0] + len(self.end) if ends else len(completion)

    def between(self, thought: Sequence[int]) -> Sequence[int]:
        """Return a thought without its delimiters, and what is after them."""
        begins = tuple(thought[: len(self.start)]) == self.start
        rest = thought[len(self.start) :] if begins else thought
        ends = places(rest, self.end)
        return rest[: ends[0]] if ends else rest

    def _is_open(self, prompt: Sequence[int]) -> bool:
        return max(places(prompt, self.start), default=-1) > max(
            places(prompt, self.end), default=-1
        )


def places(token_ids: Sequence[int], wanted: tuple[int, ...]) -> list[int]:
    """Return where the tokens that are wanted begin, in order."""
    return [
        place
        for place, token in enumerate(token_ids)
        if token == wanted[0] and tuple(token_ids[place : place + len(wanted)]) == wanted
    ]


def thought_delimiters(tokenizer: Any) -> ThoughtDelimiters | None:
    """Return what stands around thoughts, if the tokenizer has tokens of its own for it."""
    added = tokenizer.added_tokens_decoder
    for texts in DELIMITERS:
        start, end = (tuple(tokenizer(t, add_special_tokens=False).input_ids) for t in texts)
        if all(ids[0] in added and ids[-1] in added for ids in (start, end)):
            return ThoughtDelimiters(start=start, end=end)
    return None


def without_thought(text: str) -> str:
    """Return a text without the thought that it begins with, if it begins with a whole one."""
    for start, end in DELIMITERS:
        if text.lstrip().startswith(start) and end in text:
            return text.partition(end)[2].lstrip()
    return text
