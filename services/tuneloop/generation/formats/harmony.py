"""Harmony, the format of gpt-oss: a turn is messages in channels, each with a header.

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>

`analysis` is the thought and `final` the answer. A message to `functions.NAME` is a call. Messages
are told apart by the tokenizer's own special tokens: the package `openai-harmony` would download a
vocabulary. Source: the Harmony response format, developers.openai.com/cookbook.
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from tuneloop.generation.formats.reasoning import (
    Grammar,
    limited_text,
    schema_grammar,
    structural_tag,
    without_text,
)
from tuneloop.generation.formats.tags import overlap
from tuneloop.generation.formats.tool_calls import ToolCallDelta, parameters_of
from tuneloop.rollouts import ToolUse

START, MESSAGE, CHANNEL = "<|start|>", "<|message|>", "<|channel|>"
END, RETURN, CALL = "<|end|>", "<|return|>", "<|call|>"
MARKS = frozenset((START, MESSAGE, CHANNEL, END, RETURN, CALL, "<|constrain|>"))
HEADER_BEGINS = (CHANNEL, START, MESSAGE, " to=")
"""What a message may start with; other text is an answer without a header."""
HEADER_CHARACTERS = 256
"""A header that is longer is none."""
ENDS = re.compile("|".join(map(re.escape, (END, RETURN, CALL, START))))
RECIPIENT = re.compile(r"to=functions\.([A-Za-z0-9_.-]+)")
BETWEEN_MESSAGES = "\n\n"


class HarmonyReasoning:
    """Channels `analysis` and `final`."""

    marks = MARKS

    def parser(self, prompt: str) -> "HarmonyParser":
        """Return a parser for one completion."""
        return HarmonyParser()

    def after_thought(
        self, answer: Grammar, prompt: str, *, calls: bool, budget: int | None
    ) -> Grammar:
        """Return the grammar of a turn with a thought, which may be left out, and the answer."""
        thought: Grammar = {
            "type": "sequence",
            "elements": [
                {
                    "type": "tag",
                    "begin": f"{CHANNEL}analysis{MESSAGE}",
                    "content": limited_text(budget),
                    "end": END,
                },
                {"type": "const_string", "value": f"{START}assistant"},
            ],
        }
        optional: Grammar = {"type": "optional", "content": thought}
        free = without_text(answer, f"{CHANNEL}analysis")
        message = free if calls else message_grammar("final", answer)
        return {"type": "sequence", "elements": [optional, message]}


def message_grammar(channel: str, content: Grammar) -> Grammar:
    """Return the grammar of a message up to the token that ends the turn."""
    header: Grammar = {"type": "const_string", "value": f"{CHANNEL}{channel}{MESSAGE}"}
    return {"type": "sequence", "elements": [header, content]}


@dataclass(slots=True)
class HarmonyParser:
    """Tells the thought from the answer. A call is passed on as it was sampled, with its header."""

    in_thought: bool = False
    counted: int = 0
    """Tokens up to the end of the last thought, or to the header of the answer."""
    in_header: bool = True
    in_call: bool = False
    pending: str = ""
    """The header so far, or what may be the mark that ends the message."""
    tokens: int = 0
    thought_begun: bool = False
    answer_begun: bool = False
    gap: str = ""
    """What stands between the message before and this one, once it has text."""

    @property
    def thought_tokens(self) -> int:
        """How many tokens lead up to the answer: all before it, headers included."""
        before = self.in_thought or (self.in_header and not self.answer_begun)
        return self.tokens if before else self.counted

    def feed(self, text: str, token_id: int, *, ends: bool) -> tuple[str, str]:
        """Return what was added to the thought, and to the answer."""
        self.tokens += 1
        self.pending += text
        thought: list[str] = []
        answer: list[str] = []
        before = None
        # Until nothing more can be told from what is pending.
        while self.pending and before != (self.in_header, self.pending):
            before = (self.in_header, self.pending)
            to = thought if self.in_thought else answer
            to.append(self.read_header(ends) if self.in_header else self.read_body(ends))
        return "".join(thought), "".join(answer)

    def read_header(self, ends: bool) -> str:
        """Take the header, once it is complete; return it if the message is a call."""
        found = self.pending.find(MESSAGE)
        begins = [b for b in HEADER_BEGINS if self.pending.startswith(b)]
        if found < 0 or not begins:
            may_begin = not ends and any(b.startswith(self.pending) for b in HEADER_BEGINS)
            if not (begins or may_begin) or len(self.pending) > HEADER_CHARACTERS:
                self.open_message(is_thought=False)
            elif ends:
                self.pending = ""  # a header without a message is no answer
            return ""
        header = self.pending[: found + len(MESSAGE)]
        self.pending = self.pending[len(header) :]
        channel = header.partition(CHANNEL)[2]
        self.in_call = RECIPIENT.search(header) is not None
        self.open_message(is_thought=channel.startswith("analysis") and not self.in_call)
        if self.in_call:
            self.gap = ""
            return header
        if not self.answer_begun:
            self.counted = self.tokens
        return ""

    def open_message(self, *, is_thought: bool) -> None:
        """Begin the text of a message."""
        self.in_header, self.in_thought = False, is_thought
        begun = self.thought_begun if is_thought else self.answer_begun
        self.gap = BETWEEN_MESSAGES if begun else ""

    def read_body(self, ends: bool) -> str:
        """Take text of the message up to its end, or to what may be its end."""
        found = ENDS.search(self.pending)
        if found is None:
            kept = 0 if ends else max(overlap(self.pending, m) for m in (END, RETURN, CALL, START))
            text, self.pending = cut(self.pending, len(self.pending) - kept)
            return self.spaced(text)
        text, rest = cut(self.pending, found.start())
        mark = found[0]
        # The start of a message without the end of the one before is read again, as a header.
        self.pending = rest if mark == START else rest[len(mark) :]
        text = self.spaced(text)
        if self.in_call:
            text += END if mark == START else mark
        if self.in_thought and not self.answer_begun:
            self.counted = self.tokens
        self.in_header, self.in_call, self.in_thought = True, False, False
        return text

    def spaced(self, text: str) -> str:
        """Return text of a message, after a gap if it is the first and others came before."""
        if not text:
            return ""
        text, self.gap = self.gap + text, ""
        if self.in_thought:
            self.thought_begun = True
        else:
            self.answer_begun = True
        return text


def cut(text: str, at: int) -> tuple[str, str]:
    """Return the text before a place, and that from it."""
    return text[:at], text[at:]


class HarmonyTools:
    """Calls as messages to `functions.NAME`, with JSON in them."""

    def structural_tag(self, use: ToolUse) -> str:
        """Return the grammar of what follows the thought, if calls are forced or must fit."""
        if not use.forced and not any(tool.strict for tool in use.tools):
            return ""
        messages = [
            message_grammar(
                f"commentary to=functions.{tool.name} <|constrain|>json",
                schema_grammar(parameters_of(tool) if use.forced or tool.strict else True),
            )
            for tool in use.tools
            if use.name in ("", tool.name)
        ]
        if not use.forced:
            messages.append(message_grammar("final", limited_text(None)))
        return structural_tag({"type": "or", "elements": messages})

    def parser(self, use: ToolUse) -> "HarmonyCalls":
        """Return a parser for one completion."""
        return HarmonyCalls(single=use.single)


@dataclass(slots=True)
class HarmonyCalls:
    """Reads the calls that `HarmonyParser` passes on; a call is streamed as it is written."""

    single: bool
    pending: str = ""
    calls: int = 0
    in_call: bool = False

    def feed(
        self, text: str, token_ids: Sequence[int], *, ends: bool
    ) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Return the text outside calls, and what was added to calls."""
        self.pending += text
        content: list[str] = []
        found: list[ToolCallDelta] = []
        before = ""
        while self.pending != before:
            before = self.pending
            if self.in_call:
                found += self.read_arguments(ends)
            else:
                content.append(self.read_text(ends, found))
        return "".join(content), tuple(d for d in found if not (self.single and d.index))

    def read_text(self, ends: bool, found: list[ToolCallDelta]) -> str:
        """Take text up to a call's header, and the header into `found`."""
        begin = min((i for i in map(self.pending.find, (CHANNEL, START)) if i >= 0), default=-1)
        if begin < 0:
            kept = 0 if ends else max(overlap(self.pending, mark) for mark in (CHANNEL, START))
            text, self.pending = cut(self.pending, len(self.pending) - kept)
            return text
        text, header = cut(self.pending, begin)
        end = header.find(MESSAGE)
        if end < 0:
            self.pending = "" if ends else header
            return text
        name = RECIPIENT.search(header[:end])
        self.pending = header[end + len(MESSAGE) :]
        if name is not None:
            self.in_call = True
            self.calls += 1
            found.append(
                ToolCallDelta(
                    index=self.calls - 1,
                    call_id=f"call_{secrets.token_hex(12)}",
                    name=name[1],
                    arguments="",
                )
            )
        return text

    def read_arguments(self, ends: bool) -> list[ToolCallDelta]:
        """Take arguments up to the end of the call."""
        found = ENDS.search(self.pending)
        if found is None:
            kept = 0 if ends else max(overlap(self.pending, m) for m in (END, RETURN, CALL, START))
            arguments, self.pending = cut(self.pending, len(self.pending) - kept)
        else:
            arguments, rest = cut(self.pending, found.start())
            self.pending = rest if found[0] == START else rest[len(found[0]) :]
            self.in_call = False
        if not arguments:
            return []
        return [ToolCallDelta(index=self.calls - 1, call_id="", name="", arguments=arguments)]
