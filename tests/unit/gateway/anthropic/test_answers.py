"""The events of a stream add up to the whole answer, however it was cut into pieces."""

import json
from typing import Any

import pytest
from hypothesis import given
from support.generated_pieces import deltas

from tuneloop.errors import Unavailable
from tuneloop.gateway.anthropic.answers import (
    EventWriter,
    ThoughtDisplay,
    content_blocks,
    stop_reason,
    thought_display,
    tool_input,
)
from tuneloop.gateway.anthropic.requests import MessagesRequest
from tuneloop.gateway.openai.calls import GeneratedAnswer
from tuneloop.gateway.openai.collect import WholeChoice
from tuneloop.v1 import generation_pb2, rollout_pb2

STOP, LENGTH = rollout_pb2.FINISH_REASON_STOP, rollout_pb2.FINISH_REASON_LENGTH
ABORT = rollout_pb2.FINISH_REASON_ABORT
Delta = generation_pb2.GenerateDelta
Final = generation_pb2.GenerateFinal


def answer() -> GeneratedAnswer:
    request = generation_pb2.GenerateRequest(completion_id="chatcmpl-x")
    request.sampling.max_tokens = 9
    return GeneratedAnswer(
        group_id="chatcmpl-x",
        created=0,
        started=0.0,
        requests=(request,),
        n=1,
        with_tools=True,
    )


def events(
    pieces: list[Delta], final: Final, display: ThoughtDisplay = ThoughtDisplay.SHOWN
) -> list[dict[str, Any]]:
    writer = EventWriter(answer(), "tuneloop", display)
    data = b"".join(writer.write_piece(0, piece) for piece in pieces)
    data += writer.write_end(0, final) + writer.write_closing()
    found = []
    for event in data.decode("ascii").removesuffix("\n\n").split("\n\n"):
        name, document = event.split("\n")
        found.append(json.loads(document.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def blocks_of(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Build the blocks as Anthropic's clients do; each ends before the next begins."""
    blocks: list[dict[str, Any]] = []
    is_open = False
    for event in told:
        match event["type"]:
            case "content_block_start":
                assert not is_open
                assert event["index"] == len(blocks)
                blocks.append(event["content_block"])
                is_open = True
            case "content_block_delta":
                assert is_open
                assert event["index"] == len(blocks) - 1
                kind, block = event["delta"]["type"], blocks[-1]
                if kind in ("text_delta", "thinking_delta", "signature_delta"):
                    member = kind.removesuffix("_delta")
                    block[member] += event["delta"][member]
                else:
                    assert kind == "input_json_delta"
                    block["json"] = block.get("json", "") + event["delta"]["partial_json"]
            case "content_block_stop":
                assert is_open
                is_open = False
                if blocks[-1]["type"] == "tool_use":
                    blocks[-1]["input"] = tool_input(blocks[-1].pop("json", ""))
    assert not is_open
    return blocks


@given(deltas())
def test_the_events_add_up_to_the_whole_answer(pieces: list[Delta]) -> None:
    whole = WholeChoice()
    for piece in pieces:
        whole.pieces.append(piece.text)
        for call in piece.tool_calls:
            whole.add_call(call)
    expected = content_blocks(whole.text, whole.calls.values())

    told = events(pieces, Final(finish_reason=STOP, policy_version=3))
    assert told[0]["type"] == "message_start"
    assert [event["type"] for event in told[-2:]] == ["message_delta", "message_stop"]
    assert told[-2]["delta"]["stop_reason"] == ("tool_use" if whole.calls else "end_turn")

    blocks = blocks_of(told)
    thought = "".join(piece.reasoning for piece in pieces)
    thoughts = [block for block in blocks if block["type"] == "thinking"]
    assert [block["thinking"] for block in thoughts] == [thought] * bool(thought)
    assert all(block["signature"] == "chatcmpl-x" for block in thoughts)
    assert blocks[: len(thoughts)] == thoughts
    assert all(block["text"].strip() for block in blocks if block["type"] == "text")
    text = "".join(block["text"] for block in blocks if block["type"] == "text")
    assert text == "".join(block["text"] for block in expected if block["type"] == "text")
    called = [block for block in blocks if block["type"] == "tool_use"]
    assert called == [block for block in expected if block["type"] == "tool_use"]


def test_an_empty_answer_has_no_block() -> None:
    told = events([], Final(finish_reason=STOP, policy_version=3))
    assert [event["type"] for event in told] == ["message_start", "message_delta", "message_stop"]
    assert told[0]["message"]["policy_version"] == told[1]["policy_version"] == 3


def test_thoughts_are_shown_as_they_were_asked_for() -> None:
    pieces = [Delta(reasoning="hm "), Delta(reasoning="so"), Delta(text="yes")]
    end = Final(finish_reason=STOP, policy_version=3, reasoning_tokens=2)
    yes = {"type": "text", "text": "yes"}
    assert blocks_of(events(pieces, end, ThoughtDisplay.NONE)) == [yes]
    thought = {"type": "thinking", "thinking": "", "signature": "chatcmpl-x"}
    assert blocks_of(events(pieces, end, ThoughtDisplay.OMITTED)) == [thought, yes]
    assert blocks_of(events(pieces, end)) == [thought | {"thinking": "hm so"}, yes]
    for thinking, display in (
        (None, ThoughtDisplay.NONE),
        ({"type": "disabled"}, ThoughtDisplay.NONE),
        ({"type": "adaptive"}, ThoughtDisplay.SHOWN),
        ({"type": "enabled", "budget_tokens": 1024, "display": "omitted"}, ThoughtDisplay.OMITTED),
    ):
        body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "?"}]}
        asked = MessagesRequest.model_validate(body | {"thinking": thinking})
        assert thought_display(asked) is display


def test_more_than_one_version_is_told() -> None:
    spans = [
        rollout_pb2.PolicyVersionSpan(policy_version=version, start=start, end=end)
        for version, start, end in ((3, 0, 2), (4, 2, 5))
    ]
    final = Final(finish_reason=STOP, policy_version=4, policy_version_spans=spans)
    told = events([Delta(text="a", policy_version=3)], final)[-2]
    assert told["policy_version"] == 4
    assert told["policy_version_spans"] == [
        {"policy_version": 3, "start": 0, "end": 2},
        {"policy_version": 4, "start": 2, "end": 5},
    ]


@pytest.mark.parametrize(
    ("reason", "tokens", "stop", "called", "expected"),
    [
        (STOP, 3, "", False, "end_turn"),
        (STOP, 3, "", True, "tool_use"),
        (STOP, 3, "END", False, "stop_sequence"),
        (LENGTH, 9, "", True, "max_tokens"),
        (LENGTH, 8, "", False, "model_context_window_exceeded"),
    ],
)
def test_stop_reasons(reason: int, tokens: int, stop: str, called: bool, expected: str) -> None:
    final = Final(
        finish_reason=reason,  # type: ignore[arg-type]
        stop_sequence=stop,
        usage=generation_pb2.Usage(completion_tokens=tokens),
    )
    assert stop_reason(answer(), final, called=called) == expected


def test_an_answer_that_the_service_stopped_is_an_error() -> None:
    with pytest.raises(Unavailable):
        stop_reason(answer(), Final(finish_reason=ABORT), called=False)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        ('{"a": 1}', {"a": 1}),
        ('{"a": 1', {"INVALID_JSON": '{"a": 1'}),
        ("[1]", {"INVALID_JSON": "[1]"}),
        ("[" * 100_000, {"INVALID_JSON": "[" * 100_000}),
    ],
)
def test_arguments_that_are_no_object_stay_text(arguments: str, expected: dict[str, Any]) -> None:
    assert tool_input(arguments) == expected
