"""Answers of `/v1/messages`: whole, and as the events of a stream.

A block of nothing but white space is left out, as Anthropic's API refuses one that is sent back:
white space is held back until text follows it, and dropped after a call.
"""

import json
from collections.abc import Iterable
from enum import Enum, auto
from typing import Any

from starlette.responses import JSONResponse

from tuneloop import wire
from tuneloop.api.anthropic import AnthropicMessage, ContentBlock, MessageUsage, StopReason
from tuneloop.api.openai import ToolCall
from tuneloop.errors import TuneloopError, Unavailable
from tuneloop.gateway.anthropic.errors import PATH, anthropic_error
from tuneloop.gateway.anthropic.requests import MessagesRequest
from tuneloop.gateway.errors import error_body, status_and_type
from tuneloop.gateway.openai.calls import GeneratedAnswer
from tuneloop.gateway.openai.chunks import version_spans
from tuneloop.gateway.openai.collect import WholeChoice
from tuneloop.gateway.openai.sse import json_string
from tuneloop.rollouts import FinishReason
from tuneloop.v1 import generation_pb2


def stop_reason(
    answer: GeneratedAnswer, final: generation_pb2.GenerateFinal, *, called: bool
) -> StopReason:
    """Return why an answer ended. Raises `Unavailable` if the service stopped it."""
    match wire.finish_reason_from_proto.get(final.finish_reason):
        case FinishReason.LENGTH:
            asked = answer.requests[0].sampling.max_tokens
            is_full = final.usage.completion_tokens < asked
            return "model_context_window_exceeded" if is_full else "max_tokens"
        case FinishReason.STOP if final.stop_sequence:
            return "stop_sequence"
        case FinishReason.STOP:
            return "tool_use" if called else "end_turn"
        case _:
            raise Unavailable("generation stopped before the answer was complete", retry_after=1.0)


def usage(answer: GeneratedAnswer) -> MessageUsage:
    """Return token counts in Anthropic's form."""
    counts: MessageUsage = {
        "input_tokens": answer.prompt_tokens,
        "output_tokens": answer.completion_tokens,
    }
    if answer.reasoning_tokens:
        counts["output_tokens_details"] = {"thinking_tokens": answer.reasoning_tokens}
    return counts


class ThoughtDisplay(Enum):
    """What an answer shows of a thought."""

    NONE = auto()
    OMITTED = auto()
    """A block without its text."""
    SHOWN = auto()


def thought_display(body: MessagesRequest) -> ThoughtDisplay:
    """Return what the request asks to see of a thought: nothing, unless it asks to think."""
    if body.thinking is None or not body.shows_thoughts:
        return ThoughtDisplay.NONE
    omitted = body.thinking.display == "omitted"
    return ThoughtDisplay.OMITTED if omitted else ThoughtDisplay.SHOWN


def whole_message(
    answer: GeneratedAnswer, model: str, choice: WholeChoice, display: ThoughtDisplay
) -> JSONResponse:
    """Return the HTTP response of a whole answer. Raises `Unavailable` if it was stopped."""
    final = choice.final
    thoughts: list[ContentBlock] = []
    if choice.reasoning and display is not ThoughtDisplay.NONE:
        shown = choice.reasoning if display is ThoughtDisplay.SHOWN else ""
        signature = answer.completion_id
        thoughts = [{"type": "thinking", "thinking": shown, "signature": signature}]
    document: AnthropicMessage = {
        "id": answer.completion_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": thoughts + content_blocks(choice.text, choice.calls.values()),
        "stop_reason": stop_reason(answer, final, called=bool(choice.calls)),
        "stop_sequence": final.stop_sequence or None,
        "usage": usage(answer),
        "policy_version": final.policy_version,
    }
    if spans := version_spans(final):
        document["policy_version_spans"] = spans
    if answer.best_of is not None:
        document["best_of"] = answer.best_of
    headers = {
        "x-policy-version": str(final.policy_version),
        "x-completion-id": answer.completion_id,
    }
    return JSONResponse(document, headers=headers)


def content_blocks(text: str, calls: Iterable[ToolCall]) -> list[ContentBlock]:
    """Return the blocks of a whole answer: its text, if it has any, and its calls."""
    called: list[ContentBlock] = [
        {
            "type": "tool_use",
            "id": call["id"],
            "name": call["function"].get("name", ""),
            "input": tool_input(call["function"]["arguments"]),
        }
        for call in calls
    ]
    text = text.rstrip() if called else text
    return [{"type": "text", "text": text}, *called] if text.strip() else called


def tool_input(arguments: str) -> dict[str, Any]:
    """Return the arguments of a call; as text under one key if they are no JSON object."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": arguments}


def event(name: str, members: str = "") -> bytes:
    """Return one event; `members` are JSON beside its type, each after a comma."""
    return f'event: {name}\ndata: {{"type":"{name}"{members}}}\n\n'.encode()


class EventWriter:
    """Writes the events of one answer; its blocks follow each other."""

    heartbeat = event("ping")

    def __init__(self, answer: GeneratedAnswer, model: str, display: ThoughtDisplay) -> None:
        self.answer = answer
        self.model = model
        self.display = display
        self.in_thought = False
        """Whether the last block is a thought, and open."""
        self.begun = False
        self.blocks = 0
        self.in_text = False
        """Whether the last block is text, and open."""
        self.held = ""
        """White space that may be the end of the text."""
        self.block_of_call: dict[int, int] = {}

    def write_piece(self, choice: int, delta: generation_pb2.GenerateDelta) -> bytes:
        """Write a piece of text and additions to calls."""
        opening = self.write_opening(delta.policy_version)
        if delta.reasoning and self.display is not ThoughtDisplay.NONE:
            opening += self.write_thought(delta.reasoning)
        text = self.write_text(delta.text) if delta.text else b""
        return opening + text + b"".join(map(self.write_call, delta.tool_calls))

    def write_end(self, choice: int, final: generation_pb2.GenerateFinal) -> bytes:
        """Write the end of the last block, the stop reason and the usage."""
        reason = stop_reason(self.answer, final, called=bool(self.block_of_call))
        opening = self.write_opening(final.policy_version)
        rest = b""
        if self.in_text and self.held and not self.block_of_call:
            rest = self.write_delta(self.blocks - 1, "text_delta", "text", self.held)
        ending = {"stop_reason": reason, "stop_sequence": final.stop_sequence or None}
        members = (
            f',"delta":{json.dumps(ending)},"usage":{json.dumps(usage(self.answer))},'
            f'"policy_version":{final.policy_version}'
        )
        if spans := version_spans(final):
            members += f',"policy_version_spans":{json.dumps(spans)}'
        if self.answer.best_of is not None:
            members += f',"best_of":{json.dumps(self.answer.best_of)}'
        return opening + rest + self.close_block() + event("message_delta", members)

    def write_closing(self) -> bytes:
        """Write the end of the stream."""
        return event("message_stop")

    def write_failure(self, error: TuneloopError) -> bytes:
        """Write an error, which ends the stream."""
        _, document = anthropic_error(status_and_type(error)[0], error_body(error, PATH))
        return f"event: error\ndata: {json.dumps(document)}\n\n".encode()

    def write_opening(self, version: int) -> bytes:
        """Write the start of the message, once; how long the prompt is comes with the end."""
        if self.begun:
            return b""
        self.begun = True
        message: dict[str, Any] = {
            "id": self.answer.completion_id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage(self.answer),
            "policy_version": version,
        }
        return event("message_start", f',"message":{json.dumps(message)}')

    def write_thought(self, text: str) -> bytes:
        """Write a piece of the thought, which comes before all text."""
        start = b""
        if not self.in_thought:
            start = self.open_block('{"type":"thinking","thinking":"","signature":""}')
            self.in_thought = True
        if self.display is ThoughtDisplay.OMITTED:
            return start
        return start + self.write_delta(self.blocks - 1, "thinking_delta", "thinking", text)

    def write_text(self, text: str) -> bytes:
        """Write text up to its last character that is not white space."""
        text = self.held + text
        visible = text.rstrip()
        self.held = text[len(visible) :]
        if not visible:
            return b""
        start = b""
        if not self.in_text:
            start = self.open_block('{"type":"text","text":""}')
            self.in_text = True
        return start + self.write_delta(self.blocks - 1, "text_delta", "text", visible)

    def write_call(self, call: generation_pb2.ToolCallDelta) -> bytes:
        """Write what was added to a call."""
        start = b""
        if call.index not in self.block_of_call:
            name = f'"id":{json_string(call.call_id)},"name":{json_string(call.name)}'
            start = self.open_block(f'{{"type":"tool_use",{name},"input":{{}}}}')
            self.block_of_call[call.index] = self.blocks - 1
        if not call.arguments:
            return start
        block = self.block_of_call[call.index]
        return start + self.write_delta(block, "input_json_delta", "partial_json", call.arguments)

    def write_delta(self, block: int, kind: str, member: str, text: str) -> bytes:
        delta = f'{{"type":"{kind}","{member}":{json_string(text)}}}'
        return event("content_block_delta", f',"index":{block},"delta":{delta}')

    def open_block(self, block: str) -> bytes:
        """Write the end of the block before, if any, and the start of a new one."""
        ended = self.close_block()
        self.in_text = False
        self.blocks += 1
        members = f',"index":{self.blocks - 1},"content_block":{block}'
        return ended + event("content_block_start", members)

    def close_block(self) -> bytes:
        """Write the end of the last block, if there is one; a thought is signed before."""
        if not self.blocks:
            return b""
        signed = b""
        if self.in_thought:
            self.in_thought = False
            signature = self.answer.completion_id
            signed = self.write_delta(self.blocks - 1, "signature_delta", "signature", signature)
        return signed + event("content_block_stop", f',"index":{self.blocks - 1}')
