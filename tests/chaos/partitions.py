"""Networks that fall silent: what is sent does not arrive, and no connection is closed.

Each process reaches NATS through a relay of its own, and the gateway generation too. A relay that
is cut holds back what it is sent, as TCP does: once it passes again, all of it arrives.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from chaos.faults import PROCESSES, RECONNECT_SECONDS, Fault, Stage

from tuneloop.supervisor import nats

CHUNK_BYTES = 1 << 16
SECONDS = 6.0, 40.0
"""Shorter than it takes to notice, and longer: NATS gives up after 30 s without an answer to its
pings, as gRPC does."""
BUS_CLIENTS = ("generation", "reward", "learner", "gateway")
GENERATION = "gateway to generation"
"""The relay before generation."""
NO_TARGET = (OSError, ValueError, KeyError)
"""What comes of a process that starts."""


class Relay:
    """Listens on a port of its own, and connects each caller with the target."""

    def __init__(self, find_port: Callable[[], int]) -> None:
        self.port = 0
        self._find_port = find_port
        self._to, self._from = asyncio.Event(), asyncio.Event()
        self._to.set()
        self._from.set()
        self._callers: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[None]:
        """Accept callers within the block, at `port`."""
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = int(server.sockets[0].getsockname()[1])
        try:
            yield
        finally:
            server.close()
            for caller in self._callers:
                caller.cancel()
            await asyncio.gather(*self._callers, return_exceptions=True)

    @contextlib.contextmanager
    def cut(self, *, to: bool, back: bool) -> Iterator[None]:
        """Let nothing pass to the target, or from it, within the block."""
        for is_cut, passing in ((to, self._to), (back, self._from)):
            if is_cut:
                passing.clear()
        try:
            yield
        finally:
            self._to.set()
            self._from.set()

    def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caller = asyncio.create_task(self._serve(reader, writer))
        self._callers.add(caller)
        caller.add_done_callback(self._callers.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._to.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self._find_port())
        except NO_TARGET:
            writer.close()
            return
        try:
            await asyncio.gather(pump(reader, back, self._to), pump(there, writer, self._from))
        finally:
            writer.close()
            back.close()


async def pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passing: asyncio.Event
) -> None:
    """Pass on what comes, and in the end that no more will come."""
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            await passing.wait()
            writer.write(data)
            await writer.drain()
    await passing.wait()
    writer.close()


@contextlib.asynccontextmanager
async def relays(data_dir: Path) -> AsyncIterator[dict[str, Relay]]:
    """Yield a relay for each of `BUS_CLIENTS`, and one before generation, by name."""

    def find_nats() -> int:
        return urlsplit(run_state(data_dir)["nats_url"]).port or 0

    def find_generation() -> int:
        return int(run_state(data_dir)["processes"]["generation"]["port"])

    found = {name: Relay(find_nats) for name in BUS_CLIENTS} | {GENERATION: Relay(find_generation)}
    async with contextlib.AsyncExitStack() as listening:
        for relay in found.values():
            await listening.enter_async_context(relay.listen())
        yield found


def run_state(data_dir: Path) -> Any:
    """Return what the supervisor wrote about what runs."""
    return json.loads((data_dir / "run.json").read_text())


def addresses(relays: Mapping[str, Relay], data_dir: Path) -> dict[str, str]:
    """Return settings of the processes with which they use the relays."""
    found = {"TUNELOOP_GATEWAY_GENERATION_ADDRESS": f"127.0.0.1:{relays[GENERATION].port}"}
    for name in BUS_CLIENTS:
        own = f"TUNELOOP_{name.upper()}_NATS"
        found[f"{own}_URL"] = f"nats://127.0.0.1:{relays[name].port}"
        found[f"{own}_USER"] = nats.USER
        found[f"{own}_PASSWORD_FILE"] = str(data_dir / "keys" / "nats_password")
    return found


def partition(count: int, *callers: str) -> Fault:
    """Some of these callers no longer reach their target, or it no longer reaches them."""

    async def fault(stage: Stage) -> None:
        names, seconds = stage.chance.sample(callers, count), stage.chance.choice(SECONDS)
        async with stage.outage(*(f"network of {name}" for name in names)):
            with contextlib.ExitStack() as cuts:
                for name in names:
                    to, back = stage.chance.choice([(True, True), (True, False), (False, True)])
                    cuts.enter_context(stage.relays[name].cut(to=to, back=back))
                    way = "both ways" if to and back else "on its way" if to else "on the way back"
                    print(f"         {name}: {way}, {seconds:.0f} s", flush=True)
                await asyncio.sleep(seconds)
            await asyncio.sleep(RECONNECT_SECONDS)
            await stage.until_ready(PROCESSES)

    return fault


partitions: dict[str, Fault] = {
    "two cut off from nats": partition(2, *BUS_CLIENTS),
    "gateway cut off from generation": partition(1, GENERATION),
}
