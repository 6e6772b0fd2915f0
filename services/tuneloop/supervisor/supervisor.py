"""Runs a plan: starts its stages in order, keeps the processes running, stops them in reverse."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Coroutine
from datetime import UTC, datetime

from tuneloop.files import write_file
from tuneloop.models.resolve import resolve
from tuneloop.reaper import Reaper
from tuneloop.supervisor.data_dir import DataDir, check_model, lock, open_data_dir
from tuneloop.supervisor.output import Terminal
from tuneloop.supervisor.plan import ProcessPlan, make_plan, model_name
from tuneloop.supervisor.process import ManagedProcess, RestartPolicy
from tuneloop.supervisor.settings import SupervisorSettings


class Supervisor:
    """The processes of one plan, from start to stop."""

    def __init__(
        self,
        plan: ProcessPlan,
        data: DataDir,
        *,
        terminal: Terminal,
        lock_descriptor: int | None = None,
        stop_seconds: float = 15.0,
        restarts: RestartPolicy | None = None,
    ) -> None:
        self._plan = plan
        self._data = data
        self._terminal = terminal
        self._stop_seconds = stop_seconds
        self._started = time.monotonic()
        self._started_time = datetime.now(UTC)
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        held = () if lock_descriptor is None else (lock_descriptor,)
        self._reaper = Reaper(held_descriptors=held)
        self._processes = [
            ManagedProcess(
                spec,
                reaper=self._reaper,
                terminal=terminal,
                log_folder=data.logs,
                restarts=restarts or RestartPolicy(),
                changed=self._write_run_file,
            )
            for spec in plan.specs
        ]

    async def run(self) -> None:
        """Run until SIGINT, SIGTERM or SIGHUP, then stop everything.

        Raises `FailedPrecondition`, after stopping everything, if a process cannot be run.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        self._write_run_file()
        self._run_task(self._start())
        try:
            while not self._stop.is_set():
                await self._wake.wait()
                self._wake.clear()
                for task in self._tasks:
                    if task.done():
                        task.result()
        finally:
            self._tasks[0].cancel()
            await self._stop_all()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._reaper.close()
            self._data.run_file.unlink(missing_ok=True)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _run_task(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` in a task, whose end wakes `run`."""
        task = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._wake.set())
        self._tasks.append(task)

    async def _start(self) -> None:
        """Start stage after stage, and announce when a chat would be answered."""
        announcing = asyncio.create_task(self._announce())
        try:
            for stage in sorted({process.spec.stage for process in self._processes}):
                group = [process for process in self._processes if process.spec.stage == stage]
                for process in group:
                    self._run_task(process.keep_running())
                for process in group:
                    await process.ready.wait()
            await announcing
            took = time.monotonic() - self._started
            self._terminal.line("tuneloop", f"every process is ready after {took:.0f} s")
        finally:
            announcing.cancel()

    async def _announce(self) -> None:
        """Print how to use the service, as soon as it can be used."""
        gateways = [process for process in self._processes if process.spec.name == "gateway"]
        for process in gateways:
            await process.ready.wait()
            took = time.monotonic() - self._started
            self._terminal.plain(announcement(self._plan, self._data, took))

    async def _stop_all(self) -> None:
        """Stop the stages in reverse, after the gateway, which drains the running streams."""
        running = [process for process in self._processes if process.pid is not None]
        self._terminal.line("tuneloop", "stopping …")
        first = [process for process in running if process.spec.name == "gateway"]
        await self._stop_group(first)
        for stage in sorted({process.spec.stage for process in self._processes}, reverse=True):
            group = [p for p in self._processes if p.spec.stage == stage and p not in first]
            await self._stop_group(group)
        self._terminal.line("tuneloop", f"stopped; everything is kept in {self._data.root}")

    async def _stop_group(self, group: list[ManagedProcess]) -> None:
        await asyncio.gather(*(process.stop(self._stop_seconds) for process in group))

    def _on_signal(self) -> None:
        if self._stop.is_set():
            # The second signal: do not wait. A kill loses nothing that was acknowledged.
            for process in self._processes:
                process.kill()
        self._stop.set()
        self._wake.set()

    def _write_run_file(self) -> None:
        """Write `run.json`, for tests, the demo and operators."""
        processes = {
            process.spec.name: {
                "pid": process.pid,
                "port": process.spec.port,
                "metrics_port": process.spec.metrics_port,
                "ready": process.ready.is_set(),
                "restarts": process.restarts,
            }
            for process in self._processes
        }
        document = {
            "pid": os.getpid(),
            "url": self._plan.url,
            "nats_url": self._plan.nats_url,
            "policy": self._plan.policy,
            "started_time": self._started_time.isoformat(timespec="seconds"),
            "processes": processes,
        }
        with contextlib.suppress(OSError):  # a full disk must not stop the service
            content = json.dumps(document, indent=2).encode() + b"\n"
            write_file(self._data.run_file, content, mode=0o600, synced=False)


def announcement(plan: ProcessPlan, data: DataDir, seconds: float) -> str:
    """Return what to print once the service is ready."""
    header = " -H 'authorization: Bearer '$TUNELOOP_API_KEY" if plan.key_needed else ""
    key = "none needed on this machine; `tuneloop keys create` makes them"
    if plan.key_needed:
        key = "in TUNELOOP_API_KEY; `tuneloop keys list` tells which there are"
    body = f'{{"model": "{plan.policy}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    return f"""
  tuneloop is ready after {seconds:.0f} s

    page   {plan.url}
    API    {plan.url}/v1   (OpenAI-compatible; model "{plan.policy}")
    key    {key}
    try    curl {plan.url}/v1/chat/completions{header} -H 'content-type: application/json' \\
             -d '{body}'

    Press thumbs on the answers and it learns. Data: {data.root}   Stop: Ctrl-C
"""


def run_service(settings: SupervisorSettings) -> None:
    """Prepare the data folder and the models, then run until stopped. Raises `TuneloopError`."""
    descriptor = lock(settings.data_dir)
    data = open_data_dir(settings.data_dir)
    cache_dir = settings.cache_dir.expanduser()
    model = resolve(settings.model, cache_dir)
    reward_model = resolve(settings.reward_model, cache_dir)
    plan = make_plan(settings, data, model=model, reward_model=reward_model, environment=os.environ)
    name = model_name(settings.model)
    check_model(data, folder=model, name=name, weights=settings.weights)
    terminal = Terminal()
    terminal.line("tuneloop", f"starting {name} for {plan.url}; logs are in {data.logs}")

    async def supervise() -> None:
        supervisor = Supervisor(
            plan,
            data,
            terminal=terminal,
            lock_descriptor=descriptor,
            stop_seconds=settings.stop_seconds,
        )
        await supervisor.run()

    asyncio.run(supervise())
