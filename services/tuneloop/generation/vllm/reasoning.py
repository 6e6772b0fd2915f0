"""vLLM's reasoning parsers, one for each format of thoughts, fed while a completion is sampled.

Most of them know a tag that begins a thought and one that ends it, and are read by those as
`formats.tags` does: vLLM's own streams lose text where a tag is cut by a stop string or shares a
piece with the answer. The rest are fed token by token.
"""

from dataclasses import dataclass, field
from typing import Any

from tuneloop.errors import InvalidRequest, SettingsError
from tuneloop.generation.formats.choice import reasoning_names, unknown_reasoning
from tuneloop.generation.formats.reasoning import SETTING, Grammar, ReasoningFormat
from tuneloop.generation.formats.tags import TagFormat


def vllm_reasoning_format(name: str, tokenizer: Any) -> ReasoningFormat:
    """Return a format by its name for `--reasoning-parser`. Raises `SettingsError`."""
    from vllm.reasoning import ReasoningParserManager

    names = ReasoningParserManager.list_registered()
    if name not in names:
        raise unknown_reasoning(name, sorted({*names, *reasoning_names()}))
    parser_class = ReasoningParserManager.get_reasoning_parser(name)
    try:
        parser = parser_class(tokenizer)
        begin, end = parser.reasoning_start_str, parser.reasoning_end_str
        first = parser.extract_reasoning_streaming("", "?", "?", [], [0], [0])
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise SettingsError(f"{SETTING}={name} does not suit this model: {error}") from error
    if begin and end:
        return TagFormat(begin=begin, end=end, always=bool(first is not None and first.reasoning))
    return VllmReasoningFormat(name=name, parser_class=parser_class, tokenizer=tokenizer)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmReasoningFormat:
    """A format without tags of its own."""

    name: str
    parser_class: Any
    tokenizer: Any

    @property
    def marks(self) -> frozenset[str]:
        """All special tokens: vLLM does not say which it needs."""
        added = self.tokenizer.added_tokens_decoder.values()
        return frozenset(token.content for token in added if token.special)

    def parser(self, prompt: str) -> "VllmReasoningParser":
        """Return a parser for one completion."""
        return VllmReasoningParser(self.parser_class(self.tokenizer))

    def after_thought(
        self, answer: Grammar, prompt: str, *, calls: bool, budget: int | None
    ) -> Grammar:
        """Refuse: where the thought ends is not known to a grammar."""
        asked = "tool_choice" if calls else "response_format"
        raise InvalidRequest(
            f"{asked}: the thoughts of the format {self.name!r} end with no tag, so that no "
            "grammar can begin after them",
            param=asked,
        )


@dataclass(slots=True)
class VllmReasoningParser:
    """Feeds one of vLLM's parsers, which expect all text so far and what is new."""

    parser: Any
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    in_thought: bool = False
    thought_tokens: int = 0
    answered: bool = False

    def feed(self, text: str, token_id: int, *, ends: bool) -> tuple[str, str]:
        """Return what was added to the thought, and to the answer."""
        before, ids = self.text, list(self.token_ids)
        self.text += text
        self.token_ids.append(token_id)
        messages = [
            self.parser.extract_reasoning_streaming(
                before, self.text, text, ids, self.token_ids, [token_id]
            )
        ]
        if ends and hasattr(self.parser, "finish_streaming"):
            messages.append(self.parser.finish_streaming())
        said = [m for m in messages if m is not None]
        thought = "".join(m.reasoning or "" for m in said)
        answer = "".join(m.content or "" for m in said)
        self.answered = self.answered or bool(answer.strip())
        self.in_thought = not self.answered and (self.in_thought or bool(thought))
        if self.in_thought:
            self.thought_tokens = len(self.token_ids)
        return thought, answer
