"""Items of an answer of `/v1/responses`: a thought, a message, calls."""

from tuneloop import wire
from tuneloop.api.openai import (
    ItemStatus,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
)
from tuneloop.errors import Unavailable
from tuneloop.gateway.openai.collect import WholeChoice
from tuneloop.rollouts import FinishReason
from tuneloop.v1 import generation_pb2


def status_of(final: generation_pb2.GenerateFinal) -> ItemStatus:
    """Return how an answer ended. Raises `Unavailable` if the service stopped it."""
    match wire.finish_reason_from_proto.get(final.finish_reason):
        case FinishReason.STOP:
            return "completed"
        case FinishReason.LENGTH:
            return "incomplete"
        case _:
            raise Unavailable("generation stopped before the answer was complete", retry_after=1.0)


def output_items(response_id: str, choice: WholeChoice, *, as_summary: bool) -> list[OutputItem]:
    """Return the items of a whole answer: its thought, its text, if it has any, and its calls."""
    found: list[OutputItem] = []
    if choice.reasoning:
        item = begun_reasoning(response_id, 0)
        set_thought(item, choice.reasoning, as_summary=as_summary)
        found.append(item)
    text = choice.text.rstrip() if choice.calls else choice.text
    if text.strip():
        message = begun_message(response_id, len(found))
        message["content"] = [text_part(text)]
        found.append(message)
    for call in choice.calls.values():
        name = call["function"].get("name", "")
        called = begun_call(response_id, len(found), call["id"], name)
        called["arguments"] = call["function"]["arguments"]
        found.append(called)
    for number, each in enumerate(found, start=1):
        each["status"] = status_of(choice.final) if number == len(found) else "completed"
    return found


def set_thought(item: OutputReasoning, thought: str, *, as_summary: bool) -> None:
    """Put a thought where it was asked for: it is its own summary."""
    if as_summary:
        item["summary"] = [{"type": "summary_text", "text": thought}]
    else:
        item["content"] = [{"type": "reasoning_text", "text": thought}]


def text_part(text: str) -> OutputText:
    return {"type": "output_text", "text": text, "annotations": []}


def item_id(kind: str, response_id: str, index: int) -> str:
    """Return the id of an item, made from the random digits of the response's."""
    return f"{kind}_{response_id.removeprefix('resp_')[:22]}{index:04x}"


def begun_reasoning(response_id: str, index: int) -> OutputReasoning:
    return {
        "id": item_id("rs", response_id, index),
        "type": "reasoning",
        "status": "in_progress",
        "content": [],
        "summary": [],
    }


def begun_message(response_id: str, index: int) -> OutputMessage:
    return {
        "id": item_id("msg", response_id, index),
        "type": "message",
        "role": "assistant",
        "status": "in_progress",
        "content": [],
    }


def begun_call(response_id: str, index: int, call_id: str, name: str) -> OutputCall:
    return {
        "id": item_id("fc", response_id, index),
        "type": "function_call",
        "status": "in_progress",
        "call_id": call_id,
        "name": name,
        "arguments": "",
    }
