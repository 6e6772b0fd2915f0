"""The commands that talk to a running service, run as processes of their own would."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import typer
from gateway_fakes import Stack, running_gateway
from typer.testing import CliRunner, Result

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.commands.chat import chat
from tuneloop.commands.feedback import feedback_app
from tuneloop.commands.policies import policies_app
from tuneloop.errors import Unavailable

app = typer.Typer()
app.command()(chat)
app.add_typer(feedback_app, name="feedback")
app.add_typer(policies_app, name="policies")


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_gateway() as running:
        yield running


async def run(stack: Stack, *arguments: str, typed: str | None = None) -> Result:
    environment = {"TUNELOOP_URL": stack.url, "TUNELOOP_API_KEY": ""}
    return await asyncio.to_thread(
        CliRunner().invoke, app, list(arguments), input=typed, env=environment
    )


def votes(stack: Stack) -> list[wire.Feedback]:
    return [wire.decode_feedback(e.data) for e in stack.bus.streams[subjects.FEEDBACK].events]


async def test_chat_once(stack: Stack) -> None:
    result = await run(stack, "chat", "say", "hello", "--max-tokens", "5", "--system", "be brief")
    assert result.exit_code == 0, result.output
    assert "Hello, wörld" in result.stdout
    assert "[version 3, chatcmpl-" in result.stderr
    request = stack.generation.requests[0]
    assert [(m.role, m.content) for m in request.chat.messages] == [
        ("system", "be brief"),
        ("user", "say hello"),
    ]
    assert request.sampling.max_tokens == 5


async def test_chat_with_thumbs(stack: Stack) -> None:
    result = await run(stack, "chat", typed="/up\nhello\n/down\nmore\n/new\nafresh\n/what\n/quit\n")
    assert result.exit_code == 0, result.output
    assert "no answer to judge" in result.stdout
    assert [len(request.chat.messages) for request in stack.generation.requests] == [1, 3, 1]
    (vote,) = votes(stack)
    assert vote.completion_id == stack.generation.requests[0].completion_id
    assert vote.user_hash == stack.generation.requests[0].user_hash


async def test_feedback(stack: Stack) -> None:
    result = await run(stack, "chat", "hello")
    completion_id = stack.generation.requests[0].completion_id
    result = await run(stack, "feedback", "thumb", completion_id, "up", "--id", "mine")
    assert result.stdout.strip() == "mine"
    result = await run(stack, "feedback", "show", "mine")
    assert "value: up" in result.stdout
    other = f"{completion_id}.1"
    result = await run(stack, "feedback", "comparison", completion_id, other)
    assert result.exit_code == 0
    assert [str(vote.kind) for vote in votes(stack)] == ["thumb", "comparison"]
    result = await run(stack, "feedback", "thumb", "chatcmpl-made-up", "up")
    assert result.exit_code == 1
    assert "no completion 'chatcmpl-made-up'" in result.stderr


async def test_policies(stack: Stack) -> None:
    result = await run(stack, "policies", "list")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[1][:3] == ["*", "3", "2"]
    assert [row[0] for row in rows[2:]] == ["2", "1", "0"]
    assert '"ancestors"' in (await run(stack, "policies", "show", "2")).stdout
    assert "version 1" in (await run(stack, "policies", "promote", "1")).stdout
    assert "version 0" in (await run(stack, "policies", "rollback")).stdout
    assert "version 2" in (await run(stack, "policies", "rollback", "2")).stdout
    missing = await run(stack, "policies", "show", "9")
    assert (missing.exit_code, "no version 9" in missing.stderr) == (1, True)


async def test_failures_are_one_line(stack: Stack) -> None:
    stack.generation.fail = Unavailable("the engine died")
    stack.generation.fail_after = 2
    result = await run(stack, "chat", "hello")
    assert result.exit_code == 1
    assert "the engine died" in result.stderr
    result = await run(stack, "policies", "list", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "tuneloop up" in result.stderr
    assert "Traceback" not in result.output
