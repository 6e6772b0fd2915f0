"""Thoughts between two tags, such as `<think>` and `</think>`, before the answer."""

from dataclasses import dataclass
from enum import Enum, auto

from tuneloop.generation.formats.reasoning import Grammar, limited_text, without_text

WHITE_SPACE: Grammar = {"type": "regex", "pattern": "[ \\n]{0,4}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TagFormat:
    """A thought between `begin` and `end`. Where the prompt has begun it, `end` alone follows."""

    begin: str
    end: str
    always: bool = False
    """Whether the model thinks without `begin` wherever the prompt has not ended a thought."""

    @property
    def marks(self) -> frozenset[str]:
        """The tags."""
        return frozenset((self.begin, self.end))

    def parser(self, prompt: str) -> "TagParser":
        """Return a parser for one completion."""
        return TagParser(begin=self.begin, end=self.end, in_thought=self.is_begun(prompt))

    def is_begun(self, prompt: str) -> bool:
        """Return whether the completion starts within a thought."""
        turn = prompt.rstrip()
        return turn.endswith(self.begin) or (self.always and not turn.endswith(self.end))

    def after_thought(
        self, answer: Grammar, prompt: str, *, calls: bool, budget: int | None
    ) -> Grammar:
        """Return the grammar of a thought, which may be left out unless it is begun, and answer."""
        begun = self.is_begun(prompt)
        tag: Grammar = {
            "type": "tag",
            "begin": "" if begun else self.begin,
            "content": limited_text(budget),
            "end": self.end,
        }
        thought: Grammar = {"type": "sequence", "elements": [tag, WHITE_SPACE]}
        optional: Grammar = {"type": "optional", "content": thought}
        if begun:
            return {"type": "sequence", "elements": [thought, answer]}
        return {"type": "sequence", "elements": [optional, without_text(answer, self.begin)]}


class Place(Enum):
    """Where a completion is."""

    START = auto()
    THOUGHT = auto()
    BETWEEN = auto()
    """After the thought, before the first character of the answer."""
    ANSWER = auto()


@dataclass(slots=True, kw_only=True)
class TagParser:
    """Tells the thought from the answer; white space around the thought belongs to neither."""

    begin: str
    end: str
    in_thought: bool
    """Set at the start where the prompt has begun the thought."""
    place: Place = Place.START
    pending: str = ""
    """Text that may belong to a tag, or is white space at an edge."""
    tells: bool = False
    """Whether the thought has a first character."""
    tokens: int = 0
    thought_tokens: int = 0

    def feed(self, text: str, token_id: int, *, ends: bool) -> tuple[str, str]:
        """Return what was added to the thought, and to the answer."""
        self.tokens += 1
        self.pending += text
        thought = answer = ""
        if self.place is Place.START:
            self.begin_thought(ends)
        if self.place is Place.THOUGHT:
            thought = self.take_thought(ends)
        if self.place is Place.BETWEEN:
            self.pending = self.pending.lstrip()
            if self.pending:
                self.place = Place.ANSWER
        if self.place is Place.ANSWER:
            answer, self.pending = self.pending, ""
        elif self.in_thought or (self.place is Place.BETWEEN and text):
            # A token without text may be half of the answer's first character.
            self.thought_tokens = self.tokens
        return thought, answer

    def begin_thought(self, ends: bool) -> None:
        """Leave the start, once the text shows whether a thought begins."""
        visible = self.pending.lstrip()
        if visible.startswith(self.begin):
            self.pending = visible.removeprefix(self.begin)
            self.place, self.in_thought = Place.THOUGHT, True
        elif ends or not self.begin.startswith(visible):
            self.place = Place.THOUGHT if self.in_thought else Place.ANSWER

    def take_thought(self, ends: bool) -> str:
        """Return the thought up to its end, or to what may be its end."""
        if not self.tells:
            self.pending = self.pending.lstrip()
        found = self.pending.find(self.end)
        if found >= 0:
            thought = self.pending[:found].rstrip()
            self.pending = self.pending[found + len(self.end) :]
            self.place, self.in_thought = Place.BETWEEN, False
            return thought
        kept = 0 if ends else overlap(self.pending, self.end)
        thought = self.pending[: len(self.pending) - kept].rstrip()
        self.pending = "" if ends else self.pending[len(thought) :]
        self.tells = self.tells or bool(thought)
        return thought


def overlap(text: str, tag: str) -> int:
    """Return the length of the longest end of `text` that starts `tag` without completing it."""
    lengths = range(min(len(tag) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(tag[:length])), 0)
