"""Keeps one process running: starts it, watches it, restarts it when it dies, stops it."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tuneloop.backoff import Backoff
from tuneloop.errors import FailedPrecondition
from tuneloop.host import lower_priority
from tuneloop.reaper import Reaper
from tuneloop.supervisor.output import LogFile, Terminal
from tuneloop.supervisor.probes import Probe

logger = logging.getLogger("tuneloop.supervisor")

SETTINGS_ARE_WRONG = 2
"""Exit status of a process that refuses its settings: restarting it would not help."""
PROBE_SECONDS = 0.25
FAILING_SECONDS = 2.0
"""Between two checks that a running process still works."""
FAILED_CHECKS = 2
"""So many in a row end it: one may fail in passing, as nats-server's while a stream is deleted."""
PROBE_LIMIT_SECONDS = 15.0
"""After this a probe counts as failed; probes have shorter limits themselves."""
DRAIN_SECONDS = 2.0


def has_text(line: str) -> bool:
    """Return whether a line is not blank."""
    return bool(line.strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How long to wait before a process that ended is started again, in seconds."""

    first: float = 0.5
    """Doubled each time."""
    longest: float = 30.0
    healthy_after: float = 60.0
    """A process that was ready for this long starts over with `first`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """The command to run, and the probes that tell its state."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    probe: Probe
    stage: int
    """Stages start in rising order and stop in falling order."""
    port: int
    metrics_port: int | None = None
    niceness: int = 0
    failing: Probe | None = None
    """True if it runs, but will not work again until it is restarted."""
    is_shown: Callable[[str], bool] = field(default=has_text)
    """Which lines of its output belong on the terminal; the log file has all."""


class ManagedProcess:
    """Keeps one process running until it is stopped."""

    def __init__(
        self,
        spec: ProcessSpec,
        *,
        reaper: Reaper,
        terminal: Terminal,
        log_folder: Path,
        restarts: RestartPolicy,
        changed: Callable[[], None],
    ) -> None:
        self.spec = spec
        self.pid: int | None = None
        self.restarts = 0
        self.ready = asyncio.Event()
        """Set once its probe has succeeded since the last start."""
        self._reaper = reaper
        self._terminal = terminal
        self._log = LogFile(spec.name, log_folder, terminal, spec.is_shown)
        self._policy = restarts
        self._changed = changed
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()
        self._ready_at: float | None = None

    async def keep_running(self) -> None:
        """Start and restart it until stopped.

        Raises `FailedPrecondition` if it cannot be started at all, or refuses its settings.
        """
        delays = Backoff(self._policy.first, self._policy.longest)
        while not self._stopping.is_set():
            status, ready_seconds = await self._run_once()
            if self._stopping.is_set():
                break
            if status == SETTINGS_ARE_WRONG:
                raise FailedPrecondition(f"{self.spec.name} refused its settings (see above)")
            if ready_seconds >= self._policy.healthy_after:
                delays.reset()
            pause = delays.next_delay()
            self._say(f"{describe(status)}; starting it again in {pause:g} s")
            self.restarts += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
        self._log.close()

    async def stop(self, seconds: float) -> None:
        """Ask it to end; after `seconds` kill it and everything it started."""
        self._stopping.set()
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        except TimeoutError:
            self._say(f"did not stop within {seconds:g} s; killing it")
            self.kill()
            await self._ended.wait()

    def kill(self) -> None:
        """Kill it and everything it started, now."""
        self._stopping.set()
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def _run_once(self) -> tuple[int, float]:
        """Run until it ends; return its exit status, and for how many seconds it was ready."""
        loop = asyncio.get_running_loop()
        read_end, write_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *self.spec.command,
                env=dict(self.spec.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                # A group can be killed as a whole. Not a session: Linux may schedule by session,
                # and then niceness has an effect only within one.
                process_group=0,
            )
        except OSError as error:
            os.close(read_end)
            raise FailedPrecondition(f"cannot start {self.spec.name}: {error}") from error
        finally:
            os.close(write_end)
        self._reaper.add_group(process.pid)
        self._ended.clear()
        self.pid = process.pid
        self._ready_at = None
        self._changed()
        if self._stopping.is_set():
            # It was asked to stop while it started.
            self.kill()
        if self.spec.niceness:
            lower_priority(process.pid, self.spec.niceness)
        pumping = asyncio.create_task(self._pump(read_end))
        watching = asyncio.create_task(self._watch())
        try:
            status = await process.wait()
        finally:
            # Also processes that it left behind: an engine's process holds memory and ports.
            self._reaper.end_group(process.pid)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                # Only a process that left the group could still hold the other end.
                async with asyncio.timeout(DRAIN_SECONDS):
                    await pumping
            self.pid = None
            self.ready.clear()
            self._ended.set()
            self._changed()
        ready_seconds = 0.0 if self._ready_at is None else loop.time() - self._ready_at
        return status, ready_seconds

    async def _pump(self, descriptor: int) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        pipe = os.fdopen(descriptor, "rb", buffering=0)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        while data := await reader.read(65_536):
            self._log.feed(data)
        self._log.end()
        transport.close()

    async def _watch(self) -> None:
        """Probe until it is ready, then end it if its `failing` probe says so repeatedly."""
        while not await self._succeeds(self.spec.probe):
            await asyncio.sleep(PROBE_SECONDS)
        self._ready_at = asyncio.get_running_loop().time()
        self.ready.set()
        self._changed()
        if self.spec.failing is None:
            return
        failed = 0
        while failed < FAILED_CHECKS:
            await asyncio.sleep(FAILING_SECONDS)
            failed = failed + 1 if await self._succeeds(self.spec.failing) else 0
        self._say("runs but does not work any more; ending it")
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    async def _succeeds(self, probe: Probe) -> bool:
        """Return what the probe says; False if it fails, as the next one may succeed."""
        probing = asyncio.ensure_future(probe())
        try:
            await asyncio.wait({probing}, timeout=PROBE_LIMIT_SECONDS)
        finally:
            probing.cancel()
        if not probing.done():
            problem = f"no answer within {PROBE_LIMIT_SECONDS:g} s"
        elif probing.cancelled():
            problem = "cancelled"
        elif (error := probing.exception()) is not None:
            problem = repr(error)
        else:
            return probing.result()
        self._say(f"could not be probed: {problem}")
        return False

    def _say(self, text: str) -> None:
        self._terminal.line("tuneloop", f"{self.spec.name} {text}")


def describe(status: int) -> str:
    """Describe an exit status in words."""
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
