"""Answers of `/v1/responses`: whole, and as the events of a stream.

A message of nothing but white space is left out: white space is held back until text follows it,
and dropped before and after a call.
"""

import json
from collections.abc import Callable, Sequence

from starlette.responses import JSONResponse

from tuneloop.api.openai import (
    ItemStatus,
    OpenAIResponse,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    ResponseUsage,
)
from tuneloop.errors import TuneloopError
from tuneloop.gateway.errors import error_body, status_and_type
from tuneloop.gateway.openai.calls import GeneratedAnswer
from tuneloop.gateway.openai.chunks import version_spans
from tuneloop.gateway.openai.collect import WholeChoice
from tuneloop.gateway.openai.sse import json_string
from tuneloop.gateway.responses.output import (
    begun_call,
    begun_message,
    begun_reasoning,
    output_items,
    set_thought,
    status_of,
    text_part,
)
from tuneloop.gateway.responses.requests import ReasoningConfig, ResponsesRequest
from tuneloop.v1 import generation_pb2

PATH = "/v1/responses"

Keep = Callable[[Sequence[OutputItem]], None]
"""Keeps what an answer said for a next turn."""


def begun_response(answer: GeneratedAnswer, body: ResponsesRequest, model: str) -> OpenAIResponse:
    """Return the document of an answer that has just begun."""
    sampling = answer.requests[0].sampling
    text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
    return {
        "id": answer.completion_id,
        "object": "response",
        "created_at": answer.created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "store": body.may_be_continued,
        "temperature": sampling.temperature,
        "text": {"format": {"type": "text"}} | text,
        "tool_choice": body.tool_choice or "auto",
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
        "reasoning": (body.reasoning or ReasoningConfig()).model_dump(),
        "policy_version": answer.policy_version,
    }


def usage(answer: GeneratedAnswer) -> ResponseUsage:
    """Return token counts in the form of this API."""
    return {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": answer.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }


def ended_response(
    begun: OpenAIResponse,
    answer: GeneratedAnswer,
    output: Sequence[OutputItem],
    final: generation_pb2.GenerateFinal,
) -> OpenAIResponse:
    """Return the document of an answer that has ended. Raises `Unavailable` if it was stopped."""
    status = status_of(final)
    ended: OpenAIResponse = {
        **begun,
        "id": answer.completion_id,
        "status": status,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "output": list(output),
        "usage": usage(answer),
        "policy_version": final.policy_version,
    }
    if spans := version_spans(final):
        ended["policy_version_spans"] = spans
    if answer.best_of is not None:
        ended["best_of"] = answer.best_of
    return ended


def whole_response(
    begun: OpenAIResponse, answer: GeneratedAnswer, choice: WholeChoice, keep: Keep
) -> JSONResponse:
    """Return the HTTP response of a whole answer. Raises `Unavailable` if it was stopped."""
    as_summary = bool(begun["reasoning"].get("summary"))
    output = output_items(answer.completion_id, choice, as_summary=as_summary)
    document = ended_response(begun, answer, output, choice.final)
    keep(output)
    headers = {
        "x-policy-version": str(choice.final.policy_version),
        "x-completion-id": answer.completion_id,
    }
    return JSONResponse(document, headers=headers)


class EventWriter:
    """Writes the events of one answer; its items follow each other."""

    heartbeat = b": still at work\n\n"

    def __init__(self, begun: OpenAIResponse, answer: GeneratedAnswer, keep: Keep) -> None:
        self.response = begun
        """As of the last event that had it."""
        self.answer = answer
        self.keep = keep
        self.as_summary = bool(begun["reasoning"].get("summary"))
        self.events = 0
        self.items: list[OutputItem] = []
        self.pieces: list[str] = []
        """What was said of the last item: text, or arguments."""
        self.held = ""
        """White space that may be the end of the text."""
        self.index_of_call: dict[int, int] = {}

    def write_piece(self, choice: int, delta: generation_pb2.GenerateDelta) -> bytes:
        """Write a piece of text and additions to calls."""
        opening = self.write_opening(delta.policy_version)
        if delta.reasoning:
            opening += self.write_thought(delta.reasoning)
        text = self.write_text(delta.text) if delta.text else b""
        return opening + text + b"".join(map(self.write_call, delta.tool_calls))

    def write_end(self, choice: int, final: generation_pb2.GenerateFinal) -> bytes:
        """Write the end of the last item; how the answer ended comes with the closing."""
        status = status_of(final)
        written = self.write_opening(final.policy_version)
        if self.in_text and self.held and not self.index_of_call:
            written += self.write_delta(
                "output_text", self.held, ',"content_index":0,"logprobs":[]'
            )
        written += self.close_item(status)
        self.response = ended_response(self.response, self.answer, self.items, final)
        self.keep(self.items)
        return written

    def write_closing(self) -> bytes:
        """Write the whole answer, with its usage."""
        return self.write_response(f"response.{self.response['status']}")

    def write_failure(self, error: TuneloopError) -> bytes:
        """Write that the answer failed, with the items that were complete."""
        opening = self.write_opening(self.answer.policy_version)
        is_limit = status_and_type(error)[0] == 429
        self.response = {
            **self.response,
            "status": "failed",
            "error": {
                "code": "rate_limit_exceeded" if is_limit else "server_error",
                "message": error_body(error, PATH)["error"]["message"],
            },
            "output": [item for item in self.items if item["status"] == "completed"],
        }
        return opening + self.write_response("response.failed")

    def write_opening(self, version: int | None) -> bytes:
        """Write the start of the response, once; how long the prompt is comes with the end."""
        if self.events:
            return b""
        # Until a candidate is chosen its id is not known.
        self.response["id"] = self.answer.completion_id
        self.response["policy_version"] = version
        created = self.write_response("response.created")
        return created + self.write_response("response.in_progress")

    def write_thought(self, text: str) -> bytes:
        """Write a piece of the thought, which comes before all text."""
        start = b""
        if not (self.items and self.items[-1]["type"] == "reasoning"):
            item = begun_reasoning(self.answer.completion_id, len(self.items))
            start = self.open_item(item) + self.thought_part("added", "")
        what, place = self.names_of_thought
        return start + self.write_delta(what, text, place)

    @property
    def names_of_thought(self) -> tuple[str, str]:
        """The name that events give the text of a thought, and the members that tell its place."""
        if self.as_summary:
            return "reasoning_summary_text", ',"summary_index":0'
        return "reasoning_text", ',"content_index":0'

    def thought_part(self, what: str, text: str) -> bytes:
        """Write the start or the end of the only part of a thought."""
        name = "reasoning_summary_part" if self.as_summary else "content_part"
        kind = "summary_text" if self.as_summary else "reasoning_text"
        part = json.dumps({"type": kind, "text": text})
        return self.event(f"response.{name}.{what}", f'{self.names_of_thought[1]},"part":{part}')

    def close_thought(self, item: OutputReasoning, thought: str) -> bytes:
        """Write the end of a thought."""
        set_thought(item, thought, as_summary=self.as_summary)
        what, place = self.names_of_thought
        done = self.event(f"response.{what}.done", f'{place},"text":{json_string(thought)}')
        return done + self.thought_part("done", thought)

    def close_message(self, item: OutputMessage, text: str) -> bytes:
        """Write the end of a message."""
        part = text_part(text)
        item["content"] = [part]
        said = f',"content_index":0,"text":{json_string(text)},"logprobs":[]'
        done = self.event("response.output_text.done", said)
        members = f',"content_index":0,"part":{json.dumps(part)}'
        return done + self.event("response.content_part.done", members)

    def write_text(self, text: str) -> bytes:
        """Write text up to its last character that is not white space."""
        text = self.held + text
        visible = text.rstrip()
        self.held = text[len(visible) :]
        if not visible:
            return b""
        start = b""
        if not self.in_text:
            start = self.open_item(begun_message(self.answer.completion_id, len(self.items)))
            part = json.dumps(text_part(""))
            start += self.event("response.content_part.added", f',"content_index":0,"part":{part}')
        return start + self.write_delta("output_text", visible, ',"content_index":0,"logprobs":[]')

    def write_call(self, call: generation_pb2.ToolCallDelta) -> bytes:
        """Write what was added to a call."""
        start = b""
        if call.index not in self.index_of_call:
            index = self.index_of_call[call.index] = len(self.items)
            begun = begun_call(self.answer.completion_id, index, call.call_id, call.name)
            start = self.open_item(begun)
        if not call.arguments:
            return start
        return start + self.write_delta("function_call_arguments", call.arguments)

    def write_delta(self, what: str, text: str, members: str = "") -> bytes:
        """Write what was added to the last item."""
        self.pieces.append(text)
        return self.event(f"response.{what}.delta", f'{members},"delta":{json_string(text)}')

    def open_item(self, item: OutputItem) -> bytes:
        """Write the end of the item before, if any, and the start of a new one."""
        ended = self.close_item("completed")
        self.items.append(item)
        self.pieces = []
        return ended + self.item_event("response.output_item.added", item)

    def close_item(self, status: ItemStatus) -> bytes:
        """Write the end of the last item, if there is one."""
        if not self.items:
            return b""
        item, whole = self.items[-1], "".join(self.pieces)
        item["status"] = status
        if item["type"] == "message":
            written = self.close_message(item, whole)
        elif item["type"] == "reasoning":
            written = self.close_thought(item, whole)
        else:
            item["arguments"] = whole
            members = f',"arguments":{json_string(whole)}'
            written = self.event("response.function_call_arguments.done", members)
        return written + self.item_event("response.output_item.done", item)

    @property
    def in_text(self) -> bool:
        """Whether the last item is a message."""
        return bool(self.items) and self.items[-1]["type"] == "message"

    def event(self, kind: str, members: str) -> bytes:
        """Return an event about the last item; `members` are JSON, each after a comma."""
        place = f'"item_id":"{self.items[-1]["id"]}","output_index":{len(self.items) - 1}'
        return self.numbered(kind, f",{place}{members}")

    def item_event(self, kind: str, item: OutputItem) -> bytes:
        """Return an event that has the last item."""
        members = f',"output_index":{len(self.items) - 1},"item":{json.dumps(item)}'
        return self.numbered(kind, members)

    def write_response(self, kind: str) -> bytes:
        """Return an event that has the response as it is."""
        return self.numbered(kind, f',"response":{json.dumps(self.response)}')

    def numbered(self, kind: str, members: str) -> bytes:
        """Return an event with its number."""
        number, self.events = self.events, self.events + 1
        data = f'{{"type":"{kind}","sequence_number":{number}{members}}}'
        return f"event: {kind}\ndata: {data}\n\n".encode()
