"""Requests that join, leave and come late in every order, against what each must see."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tuneloop.gateway.edge.caller import LOCAL
from tuneloop.gateway.edge.idempotency import Idempotency
from tuneloop.gateway.settings import GatewaySettings

SETTINGS = GatewaySettings(secret="sixteen bytes or more")


@dataclass
class Run:
    """One run of the application behind, which does as it is told."""

    number: int
    told: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    sent: bytes = b""
    outcome: str = ""

    async def answer(self, receive: Any, send: Any) -> None:
        await receive()
        gone = asyncio.create_task(receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not self.outcome:
            next_word = asyncio.create_task(self.told.get())
            await asyncio.wait({gone, next_word}, return_when=asyncio.FIRST_COMPLETED)
            word = "gone" if gone.done() else next_word.result()
            next_word.cancel()
            if word in ("gone", "fail"):
                self.outcome = word
            else:
                more = word == "piece"
                piece = b"%d" % self.number if more else b"."
                self.sent += piece
                self.outcome = "" if more else "good"
                await send({"type": "http.response.body", "body": piece, "more_body": more})
        gone.cancel()
        for _ in range(8):  # tidying up takes a while
            await asyncio.sleep(0)
        if self.outcome == "fail":
            raise RuntimeError("broken")


@dataclass
class Client:
    """One client: what it received, and whether it has hung up."""

    task: asyncio.Task[None] | None = None
    received: bytes = b""
    ended: bool = False
    replayed: bool = False
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, app: Idempotency) -> None:
        first = True

        async def receive() -> Any:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": b"{}"}
            await self.hung_up.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.replayed = (b"idempotent-replayed", b"true") in message["headers"]
                return
            self.received += message.get("body", b"")
            self.ended = not message.get("more_body", False)
            if self.ended:
                self.hung_up.set()  # as uvicorn does once the response is complete

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/completions",
            "headers": [(b"idempotency-key", b"k")],
            "state": {"caller": LOCAL},
        }
        await app(scope, receive, send)


actions = st.tuples(
    st.sampled_from(["ask", "ask", "hang up", "piece", "piece", "end", "fail"]),
    st.integers(0, 7),
    st.integers(0, 4),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(actions, min_size=3, max_size=25))
def test_a_client_that_stays_gets_one_whole_answer(steps: list[tuple[str, int, int]]) -> None:
    asyncio.run(played(steps))


async def played(steps: list[tuple[str, int, int]]) -> None:
    runs: list[Run] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        runs.append(Run(len(runs)))
        await runs[-1].answer(receive, send)

    app = Idempotency(behind, settings=SETTINGS)
    clients: list[Client] = []
    # In the end, everything being settled, one more asks and the answer may end.
    for action, which, turns in [*steps, ("settle", 0, 40), ("ask", 0, 40), ("end", 0, 40)]:
        if action == "ask":
            clients.append(Client())
            clients[-1].task = asyncio.create_task(clients[-1].ask(app))
        elif action == "hang up" and clients:
            clients[which % len(clients)].hung_up.set()
        elif action in ("piece", "end", "fail") and runs:
            runs[-1].told.put_nowait(action)
        for _ in range(turns):
            await asyncio.sleep(0)
    bodies = {run.sent for run in runs if run.outcome == "good"}
    for client in clients:
        if client.task is not None and client.task.done() and client.task.exception() is None:
            assert client.ended or client.hung_up.is_set(), "a client was left without an end"
        if client.ended:
            assert client.received in bodies, "an answer was cut, doubled or mixed"
    answers = {client.received for client in clients if client.ended}
    assert len(answers) == 1, "one key had several answers, or the last request none"
    assert [client.replayed for client in clients if client.ended].count(False) <= 1
    entry = app.table.entries[next(iter(app.table.entries))]
    assert entry.recording.is_replayable
    assert app.table.kept_bytes == entry.recording.size
    assert len(app.table.entries) == 1
    for client in clients:
        client.hung_up.set()
        if client.task is not None:
            await asyncio.gather(client.task, return_exceptions=True)
