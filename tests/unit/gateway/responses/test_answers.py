"""The events of a stream add up to the whole answer, however it was cut into pieces."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from support.generated_pieces import deltas

from tuneloop.api.openai import OpenAIResponse, OutputItem
from tuneloop.errors import InvalidRequest, Overloaded, TuneloopError, Unavailable
from tuneloop.gateway.openai.calls import GeneratedAnswer
from tuneloop.gateway.openai.collect import WholeChoice
from tuneloop.gateway.responses.answers import (
    EventWriter,
    begun_response,
    ended_response,
)
from tuneloop.gateway.responses.output import output_items, status_of
from tuneloop.gateway.responses.requests import ResponsesRequest
from tuneloop.v1 import generation_pb2, rollout_pb2

STOP, LENGTH = rollout_pb2.FINISH_REASON_STOP, rollout_pb2.FINISH_REASON_LENGTH
ABORT = rollout_pb2.FINISH_REASON_ABORT
ID = "resp_0123456789abcdef012345rest"
Delta = generation_pb2.GenerateDelta
Final = generation_pb2.GenerateFinal
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def answer() -> GeneratedAnswer:
    request = generation_pb2.GenerateRequest(completion_id=ID)
    return GeneratedAnswer(
        group_id=ID, created=0, started=0.0, requests=(request,), n=1, with_tools=True
    )


def begun(of: GeneratedAnswer, summary: str | None = None) -> OpenAIResponse:
    body = ResponsesRequest.model_validate(
        {"model": "tuneloop", "input": "hi", "reasoning": {"summary": summary}}
    )
    return begun_response(of, body, "tuneloop")


def final(reason: int = STOP) -> Final:
    return Final(finish_reason=reason, policy_version=3)  # type: ignore[arg-type]


class Told:
    """What a writer told, and what it kept."""

    def __init__(self, summary: str | None = None) -> None:
        self.answer = answer()
        self.kept: list[Sequence[OutputItem]] = []
        self.writer = EventWriter(begun(self.answer, summary), self.answer, self.kept.append)

    def events(self, data: bytes) -> list[dict[str, Any]]:
        """Read events; each is one that OpenAI's package knows, with the next number."""
        found = []
        for number, event in enumerate(data.decode("ascii").removesuffix("\n\n").split("\n\n")):
            name, document = event.split("\n")
            found.append(json.loads(document.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
            assert found[-1]["sequence_number"] == number
            known = EVENT.validate_python(found[-1])
            assert known.type == found[-1]["type"]
        return found

    def ended(self, pieces: list[Delta], ending: Final) -> list[dict[str, Any]]:
        data = b"".join(self.writer.write_piece(0, piece) for piece in pieces)
        data += self.writer.write_end(0, ending) + self.writer.write_closing()
        return self.events(data)


def items_of(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Build the items as clients do; each ends before the next begins."""
    items: list[dict[str, Any]] = []
    is_open = False
    said = ""
    for event in told:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert not is_open
            assert event["output_index"] == len(items)
            assert event["item"]["status"] == "in_progress"
            items.append(event["item"])
            is_open, said = True, ""
        elif kind.endswith(".delta"):
            assert is_open
            assert (event["output_index"], event["item_id"]) == (len(items) - 1, items[-1]["id"])
            said += event["delta"]
        elif kind in (
            "output_text.done",
            "function_call_arguments.done",
            "reasoning_text.done",
            "reasoning_summary_text.done",
        ):
            assert event.get("text", event.get("arguments")) == said
        elif kind == "output_item.done":
            assert is_open
            items[-1] = event["item"]
            is_open = False
    assert not is_open
    return items


@given(deltas(), st.sampled_from([STOP, LENGTH]), st.sampled_from([None, "auto"]))
def test_the_events_add_up_to_the_whole_answer(
    pieces: list[Delta], reason: int, summary: str | None
) -> None:
    whole = WholeChoice(final=final(reason))
    for piece in pieces:
        whole.pieces.append(piece.text)
        whole.thoughts.append(piece.reasoning)
        for call in piece.tool_calls:
            whole.add_call(call)
    expected = output_items(ID, whole, as_summary=summary is not None)

    it = Told(summary)
    created, in_progress, *_, ended = told = it.ended(pieces, final(reason))
    assert (created["type"], in_progress["type"]) == ("response.created", "response.in_progress")
    status = "completed" if reason == STOP else "incomplete"
    assert (ended["type"], ended["response"]["status"]) == (f"response.{status}", status)

    items = items_of(told)
    assert items == ended["response"]["output"] == list(it.kept[0])
    assert [item["status"] for item in items[:-1]] == ["completed"] * (len(items) - 1)
    assert [item["status"] for item in items[-1:]] == [status] * bool(items)
    assert len({item["id"] for item in items}) == len(items)
    thoughts = [item for item in items if item["type"] == "reasoning"]
    assert [item | {"status": ""} for item in thoughts] == [
        {**item, "status": ""} for item in expected if item["type"] == "reasoning"
    ]
    assert items[: len(thoughts)] == thoughts
    told_texts = [item["content"][0]["text"] for item in items if item["type"] == "message"]
    whole_texts = [item["content"][0]["text"] for item in expected if item["type"] == "message"]
    assert all(text.strip() for text in told_texts)
    assert "".join(told_texts) == "".join(whole_texts)
    fields = ("call_id", "name", "arguments")
    assert [[item[f] for f in fields] for item in items if item["type"] == "function_call"] == [
        [item[f] for f in fields]  # type: ignore[literal-required]
        for item in expected
        if item["type"] == "function_call"
    ]


def test_one_message_is_the_same_whole_and_streamed() -> None:
    whole = WholeChoice(pieces=["Hel", "lo \n"], thoughts=["h", "m"], final=final())
    pieces = [Delta(reasoning="h"), Delta(reasoning="m"), Delta(text="Hel"), Delta(text="lo \n")]
    ended = Told().ended(pieces, final())[-1]["response"]
    it = answer()
    output = output_items(ID, whole, as_summary=False)
    document = ended_response(begun(it), it, output, final())
    assert ended == document
    Response.model_validate(document)


def test_an_empty_answer_has_no_item() -> None:
    it = Told()
    told = it.ended([], final())
    assert [event["type"] for event in told] == [
        "response.created",
        "response.in_progress",
        "response.completed",
    ]
    assert told[0]["response"]["policy_version"] == told[-1]["response"]["policy_version"] == 3
    assert it.kept == [[]]


def test_more_than_one_version_is_told() -> None:
    spans = [
        rollout_pb2.PolicyVersionSpan(policy_version=version, start=start, end=end)
        for version, start, end in ((3, 0, 2), (4, 2, 5))
    ]
    ending = Final(finish_reason=STOP, policy_version=4, policy_version_spans=spans)
    told = Told().ended([Delta(text="a", policy_version=3)], ending)
    assert told[0]["response"]["policy_version"] == 3
    assert told[-1]["response"]["policy_version"] == 4
    assert told[-1]["response"]["policy_version_spans"] == [
        {"policy_version": 3, "start": 0, "end": 2},
        {"policy_version": 4, "start": 2, "end": 5},
    ]


def test_an_answer_that_the_service_stopped_is_an_error() -> None:
    it = Told()
    with pytest.raises(Unavailable):
        it.ended([Delta(text="a")], final(ABORT))
    assert it.kept == []
    with pytest.raises(Unavailable):
        status_of(final(ABORT))


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (Overloaded("too many"), "rate_limit_exceeded", "too many"),
        (Unavailable("starting"), "server_error", "starting"),
        (TuneloopError("lost 10.0.0.1:5432"), "server_error", "a part of the service failed"),
        (InvalidRequest("max_tokens is 9", param="max_tokens"), "server_error", "max_output_t"),
    ],
)
def test_a_failure_ends_the_stream(error: TuneloopError, code: str, message: str) -> None:
    for pieces in ([], [Delta(text="a")]):
        it = Told()
        data = b"".join(it.writer.write_piece(0, piece) for piece in pieces)
        *_, failed = told = it.events(data + it.writer.write_failure(error))
        assert told[0]["type"] == "response.created"
        assert failed["type"] == "response.failed"
        assert failed["response"]["error"]["code"] == code
        assert failed["response"]["error"]["message"].startswith(message)
        assert failed["response"]["output"] == []
        assert it.kept == []
