"""What replaces personal data in texts, and its settings.

Texts are examined in processes of their own: what that costs delays no stream, and a text that
takes too long ends one of them and nothing else. A text that could not be examined counts as one
that must not be kept: callers get `Unavailable`.
"""

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import logging
import sys
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict
from collections.abc import Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, StringConstraints, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tuneloop.backoff import Backoff
from tuneloop.errors import InvalidRequest, SettingsError, Unavailable
from tuneloop.redaction import process as redaction_process
from tuneloop.settings import load

logger = logging.getLogger("tuneloop.redaction")

PROCESSES = 2
SECONDS = 5.0
"""Longest that the texts of a request may take, with the wait for a process."""
START_SECONDS = 180.0
"""Of a process, on a busy machine."""
MAX_CHARACTERS = 500_000
"""Of the texts of a request."""
MAX_KNOWN, MAX_KNOWN_CHARACTERS = 4096, 20_000
"""Texts whose outcome is remembered, by their hash, and the longest of them."""
LINE_BYTES = 16 * MAX_CHARACTERS

T = TypeVar("T")
Entity = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*$")]


class RedactionSettings(BaseSettings):
    """What is redacted, by the gateway and by generation: TUNELOOP_REDACT_…."""

    model_config = SettingsConfigDict(
        env_prefix="TUNELOOP_REDACT_", extra="forbid", frozen=True, protected_namespaces=()
    )

    entities: tuple[Entity, ...] = Field(
        (),
        description='what to replace before anything is kept, a JSON list such as ["EMAIL_ADDRESS",'
        ' "PHONE_NUMBER"] of entities of Presidio; empty: nothing',
    )
    language: str = Field(
        "en", pattern=r"^[a-z]{2,3}$", description="language of the texts, as ISO 639 has it"
    )
    model: str = Field(
        "",
        description="spaCy pipeline that finds names and places, an installed package or a folder; "
        "empty: only what has a pattern is found",
    )

    @field_validator("entities")
    @classmethod
    def _can_be_found(cls, entities: tuple[str, ...]) -> tuple[str, ...]:
        if entities and importlib.util.find_spec("presidio_analyzer") is None:
            raise ValueError("Presidio is not installed: pip install 'tuneloop[redact]'")
        return entities


def make_redactor(*, processes: int = PROCESSES, seconds: float = SECONDS) -> "Redactor | None":
    """Return what redacts by the settings of the environment; None if nothing is to be.

    Raises `SettingsError`.
    """
    settings = load(RedactionSettings)
    if not settings.entities:
        return None
    return Redactor(settings, processes=processes, seconds=seconds)


class Redactor:
    """Replaces personal data in texts. Start it before use, in the event loop of its callers."""

    def __init__(
        self, settings: RedactionSettings, *, processes: int = PROCESSES, seconds: float = SECONDS
    ) -> None:
        self._asked = json.dumps(settings.model_dump()).encode() + b"\n"
        self._count = processes
        self._seconds = seconds
        self._free: asyncio.Queue[Process] = asyncio.Queue()
        self._processes: set[Process] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._known: OrderedDict[bytes, str | None] = OrderedDict()
        """What became of texts: None if they may be kept as they are. A chat sends all its turns
        again with each."""

    async def start(self) -> None:
        """Start the processes. Raises `SettingsError` if they cannot find what they are to."""
        for process in await asyncio.gather(*(self._start() for _ in range(self._count))):
            self._free.put_nowait(process)

    async def redact(self, texts: Iterable[str]) -> Mapping[str, str]:
        """Return each text as it may be kept.

        Raises `InvalidRequest` if there is too much of it, and `Unavailable` if it could not be
        examined in time.
        """
        wanted = [text for text in dict.fromkeys(texts) if text.strip()]
        if not wanted:
            return {}
        if (characters := sum(map(len, wanted))) > MAX_CHARACTERS:
            raise InvalidRequest(
                f"the texts have {characters} characters; at most {MAX_CHARACTERS} can be redacted"
            )
        clean = {text: self._recall(text) for text in wanted}
        new = [text for text, redacted in clean.items() if redacted is None]
        if new:
            # A caller who leaves does not end the process in the middle of its line.
            examined = await asyncio.shield(self._keep(self._examine(new)))
            for text, redacted in zip(new, examined, strict=True):
                clean[text] = redacted
                self._remember(text, redacted)
        return {text: redacted or "" for text, redacted in clean.items()}

    async def close(self) -> None:
        """End the processes."""
        self._closed = True
        while tasks := tuple(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for process in tuple(self._processes):
            await self._end(process)

    def _recall(self, text: str) -> str | None:
        """Return a text as it may be kept, if it is known."""
        key = key_of(text)
        if key not in self._known:
            return None
        self._known.move_to_end(key)
        redacted = self._known[key]
        return text if redacted is None else redacted

    def _remember(self, text: str, redacted: str) -> None:
        if len(text) <= MAX_KNOWN_CHARACTERS:
            self._known[key_of(text)] = None if redacted == text else redacted
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)

    async def _examine(self, texts: list[str]) -> list[str]:
        try:
            async with asyncio.timeout(self._seconds):
                process = await self._free_process()
                try:
                    answer = await ask(process, json.dumps(texts).encode() + b"\n")
                except BaseException:
                    # Its next line would be the answer to this one.
                    self._keep(self._replace(process))
                    raise
                self._free.put_nowait(process)
        except TimeoutError:
            problem = f"the texts could not be redacted within {self._seconds:g} s; shorten them"
            raise Unavailable(problem, retry_after=5.0) from None
        except OSError:
            raise Unavailable("the process that redacts ended", retry_after=5.0) from None
        if answer is None:
            raise Unavailable("a text could not be redacted", retry_after=5.0)
        return list(answer)

    async def _free_process(self) -> Process:
        """Return a process that waits for texts."""
        while (process := await self._free.get()).returncode is not None:
            self._keep(self._replace(process))
        return process

    async def _start(self) -> Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", str(Path(redaction_process.__file__))),
            stdin=PIPE,
            stdout=PIPE,
            limit=LINE_BYTES,
        )
        self._processes.add(process)
        try:
            async with asyncio.timeout(START_SECONDS):
                answer = await ask(process, self._asked)
        except (TimeoutError, OSError) as error:
            await self._end(process)
            raise Unavailable(f"the process that redacts does not start: {error!r}") from error
        if answer["problem"]:
            await self._end(process)
            raise SettingsError(f"TUNELOOP_REDACT_…: {answer['problem']}")
        return process

    async def _replace(self, process: Process) -> None:
        """End a process and put another in its place."""
        await self._end(process)
        backoff = Backoff()
        while not self._closed:
            try:
                self._free.put_nowait(await self._start())
            except (Unavailable, SettingsError, OSError) as error:
                logger.error("%s", error)
                await asyncio.sleep(backoff.next_delay())
            else:
                return

    async def _end(self, process: Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
        self._processes.discard(process)

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def key_of(text: str) -> bytes:
    """Return what stands for a text in memory."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


async def ask(process: Process, line: bytes) -> Any:
    """Return a process's answer to a line. Raises `OSError` if it has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line)
    await process.stdin.drain()
    answer = await process.stdout.readline()
    if not answer:
        raise ConnectionResetError("it ended")
    return json.loads(answer)
