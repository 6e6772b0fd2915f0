"""The Hermes format of tool calls, used by Qwen and many others: JSON between `<tool_call>` tags.

For the engine on plain transformers; vLLM has its own parsers for this and other formats.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.generation.formats.tags import overlap
from tuneloop.generation.formats.tool_calls import ToolCallDelta, parameters_of
from tuneloop.rollouts import ToolUse

BEGIN, END = "<tool_call>", "</tool_call>"


class HermesFormat:
    """Hermes, with a grammar for it."""

    def structural_tag(self, use: ToolUse) -> str:
        """Return a grammar if a call is forced or its arguments must fit, else nothing."""
        if not use.forced and not any(tool.strict for tool in use.tools):
            return ""
        from xgrammar.structural_tag import (
            StructuralTag,
            TagsWithSeparatorFormat,
            TriggeredTagsFormat,
        )

        if not use.forced:
            calls = TriggeredTagsFormat(
                triggers=[BEGIN], tags=call_tags(use), stop_after_first=use.single
            )
            return str(StructuralTag(format=calls).model_dump_json())
        only_calls = TagsWithSeparatorFormat(
            tags=call_tags(use),
            separator="\n",
            at_least_one=True,
            stop_after_first=use.single or bool(use.name),
        )
        return str(StructuralTag(format=only_calls).model_dump_json())

    def parser(self, use: ToolUse) -> "HermesParser":
        """Return a parser for one completion."""
        return HermesParser(single=use.single)


def call_tags(use: ToolUse) -> list[Any]:
    """Return one tag for each tool that may be called, with the schema of its arguments."""
    from xgrammar.structural_tag import JSONSchemaFormat, TagFormat

    return [
        TagFormat(
            begin=f'{BEGIN}\n{{"name": "{tool.name}", "arguments": ',
            content=JSONSchemaFormat(
                json_schema=parameters_of(tool) if use.forced or tool.strict else True
            ),
            end=f"}}\n{END}",
        )
        for tool in use.tools
        if use.name in ("", tool.name)
    ]


@dataclass(slots=True, kw_only=True)
class HermesParser:
    """Returns each call as soon as it is complete; anything that is not a call stays text."""

    single: bool
    pending: str = ""
    """Text that may belong to a call."""
    calls: int = 0

    def feed(
        self, text: str, token_ids: Sequence[int], *, ends: bool
    ) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Return the text outside calls, and the calls that are complete."""
        self.pending += text
        content: list[str] = []
        found: list[ToolCallDelta] = []
        while (begin := self.pending.find(BEGIN)) >= 0:
            content.append(self.between(self.pending[:begin]))
            self.pending = self.pending[begin:]
            end = self.pending.find(END)
            if end < 0 and not ends:
                return "".join(content), tuple(found)
            body_end, rest = (end, end + len(END)) if end >= 0 else (None, len(self.pending))
            call = self.call(self.pending[len(BEGIN) : body_end])
            if call is None:
                content.append(self.pending[:rest])
            elif not self.single or call.index == 0:
                found.append(call)
            self.pending = self.pending[rest:]
        held_back = 0 if ends else overlap(self.pending, BEGIN)
        cut = len(self.pending) - held_back
        content.append(self.between(self.pending[:cut]))
        self.pending = self.pending[cut:]
        return "".join(content), tuple(found)

    def between(self, text: str) -> str:
        """Return text outside calls, without the space after a call."""
        return "" if self.calls and not text.strip() else text

    def call(self, body: str) -> ToolCallDelta | None:
        """Return the call in `body`, if it is one."""
        try:
            spelled = json.loads(body)
            name, arguments = spelled["name"], spelled.get("arguments") or {}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        self.calls += 1
        return ToolCallDelta(
            index=self.calls - 1,
            call_id=f"call_{secrets.token_hex(12)}",
            name=str(name),
            arguments=json.dumps(arguments, ensure_ascii=False),
        )
