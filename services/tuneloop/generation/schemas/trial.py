"""Tries grammars in a process of its own before any engine compiles them.

The bounds (`limits`) refuse what is known to be expensive. A schema within them may still cost
seconds, or overflow the stack of the compiler, which is native code and would take everybody's
answers with it. `trial_process` compiles each grammar under limits of CPU time, memory and stack,
one after the other; callers take turns, and verdicts are kept.
"""

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.errors import InvalidRequest, Overloaded, Unavailable
from tuneloop.generation import metrics
from tuneloop.generation.schemas import trial_process
from tuneloop.rollouts import SamplingParameters

MAX_VERDICTS = 4096
MAX_WAITING = 64
MAX_WAITING_OF_CALLER = 16
START_SECONDS = 60.0
"""Of the process, on a busy machine."""

problem_of_verdict = {
    trial_process.SLOW: f"takes more than {trial_process.CPU_SECONDS:g} s to compile",
    trial_process.HEAVY: f"takes more than {trial_process.ADDRESS_BYTES >> 30} GiB to compile",
    trial_process.FATAL: "is nested too deeply to compile",
}


@dataclass(frozen=True, slots=True)
class Waiting:
    """A grammar that waits for its verdict."""

    line: bytes
    verdict: asyncio.Future[str]


class Turns:
    """What waits, by caller: one caller cannot keep the process from the others."""

    def __init__(self) -> None:
        self.by_caller: OrderedDict[str, deque[Waiting]] = OrderedDict()

    def add(self, caller: str, waiting: Waiting) -> None:
        """Add at the end of the caller's queue. Raises `Overloaded` if that is full, or all is."""
        queued = self.by_caller.get(caller, ())
        everything = sum(len(queue) for queue in self.by_caller.values())
        if len(queued) >= MAX_WAITING_OF_CALLER or everything >= MAX_WAITING:
            raise Overloaded(
                f"{len(queued)} new schemas of this caller and {everything} in all wait to be "
                f"tried; at most {MAX_WAITING_OF_CALLER} and {MAX_WAITING} may",
                retry_after=1.0,
            )
        self.by_caller.setdefault(caller, deque()).append(waiting)

    def take(self) -> Waiting | None:
        """Return the first of the caller whose turn it is; that caller is last then."""
        if not self.by_caller:
            return None
        caller, queue = self.by_caller.popitem(last=False)
        first = queue.popleft()
        if queue:
            self.by_caller[caller] = queue
        return first


class GrammarTrial:
    """Says whether compiling a request's grammar would hurt; keeps one process for it."""

    def __init__(self, tokenizer: Any, vocab_size: int, stop_token_ids: Iterable[int]) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.stop_token_ids = sorted(stop_token_ids)
        self.available = importlib.util.find_spec("xgrammar") is not None
        self.verdicts: OrderedDict[bytes, str] = OrderedDict()
        self.pending: dict[bytes, asyncio.Future[str]] = {}
        self.turns = Turns()
        self.worker: asyncio.Task[None] | None = None
        self.process: Process | None = None
        self.described: bytes = b""

    async def check(self, sampling: SamplingParameters, caller: str) -> None:
        """Raise `InvalidRequest`, with the field's name, if compiling the grammar would hurt.

        Raises `Overloaded` if too many wait, and `Unavailable` if there is no verdict.
        """
        if not sampling.constrained or not self.available:
            return
        kind = "schema" if sampling.json_schema else "tag"
        verdict = await self.verdict(kind, sampling.json_schema or sampling.structural_tag, caller)
        if verdict == trial_process.BUSY:
            raise Unavailable("the machine is too busy to compile a grammar", retry_after=1.0)
        if (problem := problem_of_verdict.get(verdict)) is not None:
            param = sampling.grammar_field
            raise InvalidRequest(f"{param}: the grammar {problem}: simplify it", param=param)

    async def verdict(self, kind: str, text: str, caller: str) -> str:
        """Return the verdict on a grammar, from the process unless it is known."""
        key = hashlib.sha256(f"{kind}:{text}".encode()).digest()
        if key in self.verdicts:
            self.verdicts.move_to_end(key)
            return self.verdicts[key]
        if key not in self.pending:
            line = json.dumps([kind, text]).encode() + b"\n"
            waiting = Waiting(line, asyncio.get_running_loop().create_future())
            self.turns.add(caller, waiting)
            self.pending[key] = waiting.verdict
            waiting.verdict.add_done_callback(lambda done: self.keep(key, done))
        if self.worker is None:
            self.worker = asyncio.create_task(self.work(), name="grammar trial")
        return await asyncio.shield(self.pending[key])

    def keep(self, key: bytes, done: asyncio.Future[str]) -> None:
        """Keep a verdict; one without is tried again."""
        self.pending.pop(key, None)
        if done.cancelled() or done.exception() is not None:
            return
        metrics.grammars_tried.labels(done.result()).inc()
        if done.result() != trial_process.BUSY:
            self.verdicts[key] = done.result()
            if len(self.verdicts) > MAX_VERDICTS:
                self.verdicts.popitem(last=False)

    async def work(self) -> None:
        """Try what waits, one after the other."""
        try:
            while (waiting := self.turns.take()) is not None:
                try:
                    waiting.verdict.set_result(await self.ask(waiting.line))
                except (OSError, Unavailable) as error:
                    problem = f"the process that tries grammars does not answer: {error}"
                    waiting.verdict.set_exception(Unavailable(problem, retry_after=1.0))
        finally:
            self.worker = None

    async def ask(self, line: bytes) -> str:
        """Return the process's answer, from another one if it dies. Raises `Unavailable`."""
        for _ in range(2):
            with contextlib.suppress(ConnectionError, TimeoutError):
                process = await self.start()
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(line)
                await process.stdin.drain()
                async with asyncio.timeout(START_SECONDS):
                    answer = await process.stdout.readline()
                if answer:
                    return str(json.loads(answer))
            await self.close()
        raise Unavailable("it died twice")

    async def start(self) -> Process:
        """Return the process, which starts with the first grammar and after it has died."""
        if self.process is not None and self.process.returncode is None:
            return self.process
        await self.prepare()
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", str(Path(trial_process.__file__)), stdin=PIPE, stdout=PIPE
        )
        assert self.process.stdin is not None
        self.process.stdin.write(self.described)
        return self.process

    async def prepare(self) -> None:
        """Describe the tokenizer: half a second of Python, which streams would feel later."""
        if self.available and not self.described:
            self.described = await asyncio.to_thread(self.describe_tokenizer)

    def describe_tokenizer(self) -> bytes:
        """Return the first line for the process."""
        from xgrammar import TokenizerInfo

        info = TokenizerInfo.from_huggingface(
            self.tokenizer, vocab_size=self.vocab_size, stop_token_ids=self.stop_token_ids
        )
        return json.dumps(info.serialize_json()).encode() + b"\n"

    async def close(self) -> None:
        """End the process."""
        process, self.process = self.process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
