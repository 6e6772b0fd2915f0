"""Both clients against the gateway on a real socket."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from support.client_records import recorded
from support.gateway_fakes import IDS
from support.gateway_stack import Stack

from tuneloop import errors, wire
from tuneloop.bus import subjects
from tuneloop.client import AsyncClient, Client
from tuneloop.feedback import (
    Comment,
    Comparison,
    Demonstration,
    Metric,
    Ranking,
    Rating,
    Thumb,
)

TEXT = "Hello, wörld \u2028👋"


@pytest.fixture(params=[Client, AsyncClient])
async def client(request: pytest.FixtureRequest, shared_stack: Stack) -> AsyncIterator[Any]:
    made = request.param(shared_stack.url, user="ann", max_retries=0)
    yield made
    await done(made.close())


async def done(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def pieces_of(stream: Any) -> list[Any]:
    if hasattr(stream, "__aiter__"):
        return [piece async for piece in stream]
    return list(stream)


def judgements(stack: Stack, after: int) -> list[Any]:
    events = stack.bus.streams[subjects.FEEDBACK].events[after:]
    return [wire.decode_feedback(event.data).judgement for event in events]


async def test_chat(shared_stack: Stack, client: Any) -> None:
    completion = await done(
        client.chat("hello", system="be brief", n=2, temperature=0.0, train=False)
    )
    assert (completion.text, completion.policy_version) == (TEXT, 3)
    assert (completion.finish_reason, completion.usage.completion_tokens) == ("stop", 10)
    first, second = completion.choices
    assert second.id == f"{first.id}.1" == f"{completion.id}.1"
    (request,) = shared_stack.generation.requests
    assert [m.role for m in request.chat.messages] == ["system", "user"]
    assert not request.publish_rollout
    again = [{"role": "user", "content": "hello"}, completion.message]
    await done(client.chat([*again, {"role": "user", "content": "more"}]))
    assert shared_stack.generation.requests[1].chat.messages[1].content == TEXT


async def test_every_kind_of_feedback(shared_stack: Stack, client: Any) -> None:
    before = len(shared_stack.bus.streams[subjects.FEEDBACK].events)
    a = await done(client.chat("hello", n=2))
    b = a.choices[1]
    receipt = await done(a.thumb("up"))
    assert receipt.status == "accepted"
    assert (await done(client.get_feedback(receipt))).value == "up"
    await done(b.rate(0.25))
    await done(a.edit("better", metadata={"by": "hand"}))
    await done(b.comment("odd"))
    await done(a.measure("task_solved", True))
    await done(client.measure(b.id, "seconds", 3.5))
    await done(client.compare(a, b))
    await done(client.rank([b, a]))
    assert judgements(shared_stack, before) == [
        Thumb(up=True),
        Rating(value=0.25),
        Demonstration(text="better"),
        Comment(text="odd"),
        Metric(name="task_solved", value=True),
        Metric(name="seconds", value=3.5),
        Comparison(chosen=a.id, rejected=(b.id,)),
        Ranking(completion_ids=(b.id, a.id)),
    ]
    await done(client.thumb(a.id, "down", id=f"mine-{type(client).__name__}"))
    with pytest.raises(errors.Conflict) as conflict:
        await done(client.thumb(a, "up", id=f"mine-{type(client).__name__}"))
    assert conflict.value.param == "id"
    with pytest.raises(errors.NotFound) as unknown:
        await done(client.thumb("chatcmpl-made-up", "up"))
    assert unknown.value.reason == "COMPLETION_NOT_FOUND"


async def test_batch_and_retraction(shared_stack: Stack, client: Any) -> None:
    a = await done(client.chat("hello"))
    receipt, refused = await done(
        client.feedback(
            [
                {"kind": "thumb", "completion_id": a.id, "value": "up"},
                {"kind": "thumb", "completion_id": "chatcmpl-made-up", "value": "up"},
            ]
        )
    )
    assert receipt.status == "accepted"
    assert (type(refused), refused.reason) == (errors.NotFound, "COMPLETION_NOT_FOUND")
    assert (await done(client.retract(receipt))).status == "retracted"
    assert (await done(client.get_feedback(receipt))).status == "retracted"
    with pytest.raises(errors.NotFound):
        await done(client.retract("fb-never"))


async def test_list(shared_stack: Stack, client: Any) -> None:
    shared_stack.learner.recorded = [
        recorded("b", Comment(text="odd")),
        recorded("a", Thumb(up=True)),
    ]
    page = await done(client.list_feedback(limit=1))
    assert [(item.id, item.text, item.completion) for item in page.items] == [
        ("b", "odd", "an answer")
    ]
    rest = await done(client.list_feedback(before=page.next))
    assert [(item.id, item.value) for item in rest.items] == [("a", "up")]
    assert rest.next is None
    thumbs = await done(client.list_feedback(kind="thumb"))
    assert [item.id for item in thumbs.items] == ["a"]


async def test_stream(shared_stack: Stack, client: Any) -> None:
    stream = client.stream("hello", n=2)
    with pytest.raises(errors.FailedPrecondition):
        _ = stream.completion
    pieces = await pieces_of(stream)
    assert "".join(str(p) for p in pieces if p.index == 1) == TEXT
    completion = stream.completion
    assert (completion.text, completion.finish_reason) == (TEXT, "stop")
    assert completion.usage.completion_tokens == 10
    assert [choice.policy_version for choice in completion.choices] == [3, 3]
    assert (await done(completion.choices[1].thumb("down"))).status == "accepted"


async def test_a_stream_that_fails_half_way(shared_stack: Stack, client: Any) -> None:
    shared_stack.generation.fail = errors.Unavailable("the engine died")
    shared_stack.generation.fail_after = 2
    stream = client.stream("hello")
    with pytest.raises(errors.Unavailable, match="the engine died"):
        await pieces_of(stream)
    assert (stream.completion.text, stream.completion.finish_reason) == ("Hello, ", None)


async def test_leaving_a_stream_stops_the_work(shared_stack: Stack) -> None:
    shared_stack.generation.first_delay, shared_stack.generation.delay = 0.0, 0.2
    shared_stack.generation.cancelled.clear()
    try:
        async with AsyncClient(shared_stack.url) as client, client.stream("hello") as stream:
            async for _ in stream:
                break
        for _ in range(500):
            if shared_stack.generation.cancelled.is_set():
                break
            await asyncio.sleep(0.01)
    finally:
        shared_stack.generation.delay = 0.0
    assert shared_stack.generation.cancelled.is_set()


async def test_policies_and_scores(shared_stack: Stack, client: Any) -> None:
    policies = await done(client.policies(limit=2))
    assert policies.policy_version == 3
    assert [v.policy_version for v in policies.versions] == [3, 2]
    assert policies.versions[0].evaluation["mean_reward"] == 0.5
    assert (await done(client.policy(2))).parent_version == 1
    assert await done(client.promote(1)) == 1
    assert await done(client.roll_back()) == 0
    assert await done(client.roll_back(3)) == 3
    scores = await done(client.score("question", ["four", ""]))
    assert (scores.scores, scores.reward_model_version) == ([4.0, None], 2)
    assert (await done(client.request("GET", "/v1/learner")))["state"] == "waiting"
    one = await done(client.request("GET", "/v1/policies?limit=1&before=3"))
    assert [version["policy_version"] for version in one["data"]] == [2]
    with pytest.raises(errors.NotFound, match="no version 9"):
        await done(client.policy(9))


class Forgetful(httpx.HTTPTransport):
    """Loses the first answer on its way back, as a broken connection does."""

    lost = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if not self.lost:
            response.read()
            self.lost = True
            raise httpx.ReadError("connection reset")
        return response


class AsyncForgetful(httpx.AsyncHTTPTransport):
    lost = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        if not self.lost:
            await response.aread()
            self.lost = True
            raise httpx.ReadError("connection reset")
        return response


@pytest.mark.parametrize(
    ("kind", "transport"), [(Client, Forgetful), (AsyncClient, AsyncForgetful)]
)
async def test_what_is_sent_again_counts_once(
    shared_stack: Stack, kind: Any, transport: Any
) -> None:
    client = kind(shared_stack.url, transport=transport())
    completion = await done(client.chat("hello"))
    (request,) = shared_stack.generation.requests
    assert (completion.id, completion.text) == (request.completion_id, TEXT)
    await done(client.close())
    before = len(shared_stack.bus.streams[subjects.FEEDBACK].events)
    client = kind(shared_stack.url, transport=transport())
    await done(client.thumb(completion.id, "up"))
    assert judgements(shared_stack, before) == [Thumb(up=True)]
    await done(client.close())
    client = kind(shared_stack.url, transport=transport())
    stream = client.stream("hello")
    assert "".join(map(str, await pieces_of(stream))) == TEXT
    assert stream.completion.id == shared_stack.generation.requests[-1].completion_id
    assert len(shared_stack.generation.requests) == 2
    await done(client.close())


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_client_sends_signals(shared_stack: Stack, kind: Any) -> None:
    events = shared_stack.bus.streams[subjects.SIGNALS].events
    before = len(events)
    client = kind(shared_stack.url, user="ann")
    completion = await done(client.chat("hello"))
    receipt = await done(completion.signal("edited", distance=0.25))
    await done(client.signal(completion.id, "copied", user="bob", metadata={"place": "inbox"}))
    again = await done(completion.signal("edited", distance=0.25))
    assert (again.id, again.status) == (receipt.id, "accepted")
    edited, copied = (wire.decode_signal(event.data) for event in events[before:])
    assert (edited.completion_id, edited.kind, edited.distance) == (completion.id, "edited", 0.25)
    assert (copied.user_hash, copied.metadata) == (
        IDS.user_hash("default", "bob"),
        {"place": "inbox"},
    )
    await done(client.close())


async def test_a_session_is_named_by_its_turns_and_judged(shared_stack: Stack, client: Any) -> None:
    await done(client.chat("hello", session_id="chat-7"))
    await pieces_of(client.stream("hello", session_id="chat-7"))
    asked = [request.session_id for request in shared_stack.generation.requests]
    assert asked == ["chat-7", "chat-7"]
    receipt = await done(client.thumb(None, "up", session_id="chat-7"))
    await done(client.rate(None, 0.5, session_id="chat-7"))
    await done(client.measure(None, "solved", True, session_id="chat-7"))
    events = shared_stack.bus.streams[subjects.FEEDBACK].events
    given = [wire.decode_feedback(event.data) for event in events]
    assert {(f.session_id, f.completion_id) for f in given} == {("chat-7", "")}
    solved = Metric(name="solved", value=True)
    assert [f.judgement for f in given] == [Thumb(up=True), Rating(value=0.5), solved]
    item = await done(client.get_feedback(receipt))
    assert (item.session_id, item.completion_id) == ("chat-7", None)
