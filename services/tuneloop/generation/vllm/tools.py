"""vLLM's tool parsers, one for each format of tool calls, fed while a completion is sampled."""

from collections.abc import Sequence
from typing import Any

from tuneloop.errors import InvalidRequest, SettingsError
from tuneloop.generation.formats.tool_calls import SETTING, ToolCallDelta, openai_form
from tuneloop.rollouts import Tool, ToolUse


class VllmToolFormat:
    """One of vLLM's parsers, by its name for `--tool-call-parser`."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        from vllm.tool_parsers import ToolParserManager

        names = ToolParserManager.list_registered()
        if name not in names:
            raise SettingsError(f"{SETTING}={name}: must be one of {', '.join(names)}")
        self.name = name
        self.tokenizer = tokenizer
        self.parser_class = ToolParserManager.get_tool_parser(name)
        try:
            self.parser(ToolUse(tools=(Tool(name="any"),))).feed("?", (), ends=True)
        except (RuntimeError, ValueError) as error:
            raise SettingsError(f"{SETTING}={name} does not suit this model: {error}") from error

    def structural_tag(self, use: ToolUse) -> str:
        """Return the parser's own grammar, if a call is forced or its arguments must fit."""
        from vllm.tool_parsers.structural_tag_registry import limit_to_single_tool_call

        request = chat_request(use)
        tag = self.parser_class(self.tokenizer, request.tools).get_structural_tag(request)
        if tag is not None:
            limited = limit_to_single_tool_call(tag) if use.single else tag
            return str(limited.model_dump_json())
        if use.forced:
            raise InvalidRequest(
                f"tool_choice: the format {self.name!r} cannot force a call: use 'auto'",
                param="tool_choice",
            )
        return ""

    def parser(self, use: ToolUse) -> "VllmToolParser":
        """Return a parser for one completion."""
        request = chat_request(use)
        return VllmToolParser(self.parser_class(self.tokenizer, request.tools), request, use.single)


class VllmToolParser:
    """Feeds one of vLLM's parsers, which expect all text so far and what is new."""

    def __init__(self, parser: Any, request: Any, single: bool) -> None:
        self.parser = parser
        self.request = request
        self.single = single
        self.text = ""
        self.token_ids: list[int] = []
        self.content = 0
        """Characters returned as text."""
        self.called = False

    def feed(
        self, text: str, token_ids: Sequence[int], *, ends: bool
    ) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Return the text outside calls, and what was added to calls."""
        before, ids_before = self.text, self.token_ids
        self.text, self.token_ids = before + text, [*ids_before, *token_ids]
        content, calls = "", []
        message = self.parser.extract_tool_calls_streaming(
            before, self.text, text, ids_before, self.token_ids, list(token_ids), self.request
        )
        if message is not None:
            content, calls = message.content or "", list(message.tool_calls or ())
        self.content += len(content)
        self.called = self.called or bool(calls)
        found = [self.delta(call) for call in calls if not (self.single and call.index)]
        if ends:
            rest = self.parser.get_remaining_unstreamed_args() if self.called else ""
            if rest:
                last = max(0, len(self.parser.prev_tool_call_arr) - 1)
                found.append(ToolCallDelta(index=last, call_id="", name="", arguments=rest))
            if not self.called:
                # Held back in case a call would follow.
                content += self.text[self.content :]
        return content, tuple(found)

    def delta(self, call: Any) -> ToolCallDelta:
        """Convert one of vLLM's deltas."""
        function = call.function
        return ToolCallDelta(
            index=call.index,
            call_id=call.id if function and function.name and call.id else "",
            name=(function.name if function else None) or "",
            arguments=(function.arguments if function else None) or "",
        )


def chat_request(use: ToolUse) -> Any:
    """Return the request for vLLM's parsers: tools and choice, nothing else."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    named = {"type": "function", "function": {"name": use.name}}
    return ChatCompletionRequest.model_validate(
        {
            "messages": [{"role": "user", "content": ""}],
            "tools": [openai_form(tool, strict=use.forced or tool.strict) for tool in use.tools],
            "tool_choice": named if use.name else "required" if use.required else "auto",
            "parallel_tool_calls": not use.single,
        }
    )
