"""Redaction at the gateway: what generation, bus and learner get of each API; what is refused."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import psutil
import pytest
from support.gateway_stack import Stack, gateway_in_thread, running_gateway
from support.waiting import until

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.errors import SettingsError
from tuneloop.redaction.redactor import make_redactor
from tuneloop.v1 import generation_pb2

MAIL = "ann@example.org"
TEXT = f"Write to {MAIL} or call 212-555-0187, 378282246310005."
CLEAN = "Write to <EMAIL_ADDRESS> or call <PHONE_NUMBER>, <CREDIT_CARD>."
ENTITIES = '["EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD"]'


@pytest.fixture(scope="module")
def redacting() -> Iterator[Stack]:
    """A gateway that redacts: to start Presidio takes seconds."""
    pytest.importorskip("presidio_analyzer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNELOOP_REDACT_ENTITIES", ENTITIES)
        with gateway_in_thread() as running:
            yield running


@pytest.fixture
def stack(redacting: Stack) -> Stack:
    redacting.generation.requests.clear()
    redacting.learner.calls.clear()
    for stream in redacting.bus.streams.values():
        stream.events.clear()
    return redacting


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"{stack.url}/v1/", timeout=30) as client:
        yield client


async def asked(client: httpx.AsyncClient, stack: Stack, path: str, **body: Any) -> Any:
    """What generation was asked."""
    answer = await client.post(path, json={"model": "tuneloop", **body})
    assert answer.status_code == 200, answer.text
    [request] = stack.generation.requests
    assert MAIL not in str(request)
    assert request.redacted
    stack.generation.requests.clear()
    return request


def turns(request: generation_pb2.GenerateRequest) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in request.chat.messages]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_model_sees_placeholders_in_every_api(
    client: httpx.AsyncClient, stack: Stack, stream: bool
) -> None:
    said = [{"role": "user", "content": TEXT}]
    chat = await asked(client, stack, "chat/completions", messages=said, stream=stream)
    assert turns(chat) == [("user", CLEAN)]
    message = await asked(
        client, stack, "messages", messages=said, max_tokens=5, system=TEXT, stream=stream
    )
    assert turns(message) == [("system", CLEAN), ("user", CLEAN)]
    response = await asked(client, stack, "responses", input=TEXT, instructions=TEXT, stream=stream)
    assert turns(response) == [("system", CLEAN), ("user", CLEAN)]
    completion = await asked(client, stack, "completions", prompt=TEXT, stream=stream)
    assert completion.text == CLEAN


async def test_tools_their_calls_and_schemas_stay_json(
    client: httpx.AsyncClient, stack: Stack
) -> None:
    parameters = {"type": "object", "properties": {"to": {"type": "string", "description": TEXT}}}
    function = {"name": "send", "description": TEXT, "parameters": parameters}
    # A number is a card too; of a name that is there twice only the text tells.
    arguments = f'{{"to": "{MAIL}", "card": 378282246310005, "{MAIL}": 1, "to": "bob"}}'
    call = {"id": "call_12345", "type": "function"}
    request = await asked(
        client,
        stack,
        "chat/completions",
        tools=[{"type": "function", "function": function}],
        messages=[
            {"role": "user", "content": "Send it."},
            {
                "role": "assistant",
                "tool_calls": [{**call, "function": {"name": "send", "arguments": arguments}}],
            },
            {"role": "tool", "tool_call_id": "call_12345", "content": TEXT},
        ],
    )
    [tool] = request.tool_use.tools
    assert (tool.name, tool.description) == ("send", CLEAN)
    assert json.loads(tool.parameters)["properties"]["to"]["description"] == CLEAN
    [made] = request.chat.messages[1].tool_calls
    assert made.call_id == request.chat.messages[2].tool_call_id == "call_12345"
    assert json.loads(made.arguments) == {
        "to": "bob",
        "card": "<CREDIT_CARD>",
        "<EMAIL_ADDRESS>": 1,
    }


async def test_stop_strings_and_a_schema_are_redacted(
    client: httpx.AsyncClient, stack: Stack
) -> None:
    schema = {"type": "object", "properties": {"to": {"enum": [MAIL, "nobody"]}}}
    request = await asked(
        client,
        stack,
        "chat/completions",
        messages=[{"role": "user", "content": "To whom?"}],
        stop=[MAIL],
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    assert list(request.sampling.stop) == ["<EMAIL_ADDRESS>"]
    enum = json.loads(request.sampling.json_schema)["properties"]["to"]["enum"]
    assert enum == ["<EMAIL_ADDRESS>", "nobody"]


async def test_feedback_signals_and_imports_are_redacted(
    client: httpx.AsyncClient, stack: Stack
) -> None:
    said = [{"role": "user", "content": "hi"}]
    body = {"model": "tuneloop", "messages": said, "user": MAIL}
    answer = (await client.post("chat/completions", json=body)).json()
    judged = {"completion_id": answer["id"], "user": MAIL, "metadata": {"by": MAIL, MAIL: "x"}}
    for kind in ("comment", "demonstration"):
        body = {"kind": kind, "text": TEXT, **judged}
        assert (await client.post("feedback", json=body)).status_code == 202
        assert (await client.post("feedback/batch", json={"feedback": [body]})).status_code == 202
    stored = [
        wire.decode_feedback(event.data) for event in stack.bus.streams[subjects.FEEDBACK].events
    ]
    assert [each.judgement.text for each in stored] == [CLEAN] * 4
    assert dict(stored[0].metadata) == {"by": "<EMAIL_ADDRESS>", "<EMAIL_ADDRESS>": "x"}
    signal = {"kind": "copied", **judged}
    assert (await client.post("signals", json={"signals": [signal]})).status_code == 202
    rows = [{"place": f"{MAIL}:1", "row": {"prompt": TEXT, "completion": "a"}}]
    imported = {"kind": "demonstrations", "rows": rows}
    assert (await client.post("import", json=imported)).status_code == 200
    everything = [event.data for s in stack.bus.streams.values() for event in s.events]
    assert len(everything) == 5
    assert not any(MAIL.encode() in data for data in everything)
    [question] = [call for call in stack.learner.calls if hasattr(call, "rows")]
    assert MAIL not in str(question)
    assert json.loads(question.rows[0].row) == {"prompt": CLEAN, "completion": "a"}


async def test_what_cannot_be_redacted_is_refused(client: httpx.AsyncClient, stack: Stack) -> None:
    tokens = await client.post("completions", json={"model": "tuneloop", "prompt": [5, 6, 7]})
    assert (tokens.status_code, tokens.json()["error"]["param"]) == (400, "prompt")
    said = {"model": "tuneloop", "messages": [{"role": "user", "content": "hi"}]}
    named = await client.post("chat/completions", json={**said, "session_id": MAIL})
    assert (named.status_code, named.json()["error"]["param"]) == (400, "session_id")
    header = await client.post("chat/completions", json=said, headers={"x-session-id": MAIL})
    assert header.status_code == 400
    judged = {"kind": "thumb", "session_id": MAIL, "value": "up"}
    assert (await client.post("feedback", json=judged)).status_code == 400
    assert stack.generation.requests == []
    named = await client.post("chat/completions", json={**said, "session_id": "chat-4711"})
    assert named.status_code == 200


def examining() -> set[psutil.Process]:
    """The processes that examine texts."""
    children = psutil.Process().children()
    return {child for child in children if any("redaction" in word for word in child.cmdline())}


async def test_what_could_not_be_examined_is_kept_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("presidio_analyzer")
    monkeypatch.setenv("TUNELOOP_REDACT_ENTITIES", ENTITIES)
    before = examining()
    async with (
        running_gateway() as stack,
        httpx.AsyncClient(base_url=f"{stack.url}/v1/", timeout=30) as client,
    ):
        said = {"model": "tuneloop", "messages": [{"role": "user", "content": "hi"}]}
        answer = (await client.post("chat/completions", json=said)).json()
        judged = {"kind": "comment", "completion_id": answer["id"], "text": TEXT}
        stack.generation.requests.clear()
        said["messages"] = [{"role": "user", "content": TEXT}]
        own = examining() - before
        for process in own:
            process.suspend()
        refused = await asyncio.gather(
            client.post("chat/completions", json=said), client.post("feedback", json=judged)
        )
        assert [each.status_code for each in refused] == [503, 503]
        assert all(int(each.headers["retry-after"]) > 0 for each in refused)
        assert stack.generation.requests == []
        assert all(not stream.events for stream in stack.bus.streams.values())

        async def answers() -> bool:
            return (await client.post("chat/completions", json=said)).status_code == 200

        # Others take their place.
        await until(answers, 180)
        assert turns(stack.generation.requests[-1]) == [("user", CLEAN)]
        assert not own & examining()
    assert examining() == before


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("ENTITIES", '["EMAIL"]', "nothing finds EMAIL; known without a model: .*EMAIL_ADDRESS"),
        ("ENTITIES", '["PERSON"]', "nothing finds PERSON"),
        ("MODEL", "en_no_such_model", "neither an installed spaCy pipeline nor its folder"),
    ],
)
async def test_what_nothing_finds_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    pytest.importorskip("presidio_analyzer")
    monkeypatch.setenv("TUNELOOP_REDACT_ENTITIES", ENTITIES)
    monkeypatch.setenv(f"TUNELOOP_REDACT_{name}", value)
    redactor = make_redactor(processes=1)
    assert redactor is not None
    with pytest.raises(SettingsError, match=problem):
        await redactor.start()
    await redactor.close()
