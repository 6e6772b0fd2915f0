"""The engine on plain transformers: for machines without vLLM, and for fast tests.

One thread owns the model and advances every running completion by one token in turn, so several
stream at the same time. Versions are loaded between two turns. It does not batch, as vLLM does.
"""

import asyncio
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from tuneloop.errors import SettingsError, TuneloopError, Unavailable
from tuneloop.generation.engine import (
    EngineLimits,
    EngineOutput,
    EngineRequest,
    TokenCandidate,
    check_limits,
)
from tuneloop.generation.formats.choice import (
    HARMONY_TOOLS,
    own_reasoning_format,
    own_tool_format,
    reasoning_names,
    unknown_reasoning,
)
from tuneloop.generation.formats.detokenization import Detokenizer, StopStrings
from tuneloop.generation.formats.reasoning import ReasoningFormat
from tuneloop.generation.formats.tool_calls import SETTING, ToolFormat
from tuneloop.generation.prompts import Tokenization
from tuneloop.generation.transformers.grammars import Grammar, Grammars
from tuneloop.generation.transformers.hermes import HermesFormat
from tuneloop.generation.transformers.model import VersionedModel
from tuneloop.generation.transformers.sampling import choose, processed_logprobs
from tuneloop.policies import WeightsKind
from tuneloop.rollouts import FinishReason, merge_spans
from tuneloop.weights.files import check_weights

logger = logging.getLogger("tuneloop.generation")

T = TypeVar("T")

MAX_LOGPROBS = 20


@dataclass(slots=True, kw_only=True)
class Running:
    """A completion that is being sampled."""

    request: EngineRequest
    index: int
    deliver: Callable[[EngineOutput | Exception], None]
    detokenizer: Detokenizer
    stops: StopStrings
    generator: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)
    versions: list[int] = field(default_factory=list)
    cache: Any = None
    """Keys and values of all tokens but the last; with None the next step computes them all."""
    cancelled: bool = False
    grammar: Grammar | None = None
    """Which tokens may come next, if the completion must match a schema."""


class TransformersEngine:
    """Samples several completions token by token, in one thread."""

    name = "transformers"

    def __init__(
        self, model: Path, weights_kind: WeightsKind, max_model_len: int | None, threads: int
    ) -> None:
        self.folder = model
        self.weights_kind = weights_kind
        self.max_model_len = max_model_len
        self.threads = threads
        self.commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.running: list[Running] = []
        self.weights_version = 0
        self.stopping = False
        self.failure: asyncio.Future[str] | None = None
        self.thread: threading.Thread | None = None
        self.model: VersionedModel
        self.tokenization: Tokenization
        self.grammars: Grammars
        self.compiling = ThreadPoolExecutor(1, "grammar")
        self.limits: EngineLimits

    async def start(self) -> EngineLimits:
        """Load the base model (version 0) and be ready."""
        if self.threads:
            torch.set_num_threads(self.threads)
        self.failure = asyncio.get_running_loop().create_future()
        self.model, self.tokenization = await asyncio.to_thread(
            lambda: (VersionedModel(self.folder), Tokenization(self.folder))
        )
        self.grammars = Grammars(
            self.tokenization.tokenizer, self.model.vocab_size, self.tokenization.stop_token_ids
        )
        own_limit = self.model.max_model_len
        self.limits = EngineLimits(
            max_model_len=min(self.max_model_len or own_limit, own_limit),
            vocab_size=self.model.vocab_size,
            max_logprobs=MAX_LOGPROBS,
        )
        loop = asyncio.get_running_loop()
        self.thread = threading.Thread(target=self.work, args=(loop,), name="sampler", daemon=True)
        self.thread.start()
        return self.limits

    async def stop(self) -> None:
        """Abort running requests and end the thread."""
        if self.thread is None:
            return

        def end() -> None:
            self.stopping = True

        self.commands.put(end)
        await asyncio.to_thread(self.thread.join)
        self.compiling.shutdown(wait=False, cancel_futures=True)
        self.thread = None

    async def wait_for_failure(self) -> str:
        """Wait until the thread has died; return the reason."""
        if self.failure is None:
            raise Unavailable("the engine was not started")
        return await asyncio.shield(self.failure)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
        """Stream outputs; closing the iterator aborts the request."""
        if self.thread is None or not self.thread.is_alive():
            raise Unavailable("the engine is not running", retry_after=1.0)
        check_limits(request.prompt_token_ids, request.sampling, self.limits)
        loop = asyncio.get_running_loop()
        compiled = await loop.run_in_executor(
            self.compiling, self.grammars.compile, request.sampling
        )
        outputs: asyncio.Queue[EngineOutput | Exception] = asyncio.Queue()

        def deliver(output: EngineOutput | Exception) -> None:
            loop.call_soon_threadsafe(outputs.put_nowait, output)

        completions = [self.begin(request, i, deliver) for i in range(request.sampling.n)]
        if compiled is not None:
            for completion in completions:
                completion.grammar = self.grammars.begin(compiled)
        self.commands.put(lambda: self.running.extend(completions))
        unfinished = len(completions)
        try:
            while unfinished:
                output = await outputs.get()
                if isinstance(output, Exception):
                    raise output
                unfinished -= output.finish_reason is not None
                yield output
        finally:
            for completion in completions:
                completion.cancelled = True

    def begin(
        self,
        request: EngineRequest,
        index: int,
        deliver: Callable[[EngineOutput | Exception], None],
    ) -> Running:
        """Return a completion before its first token."""
        generator = torch.Generator()
        if request.sampling.seed is None:
            generator.seed()
        else:
            # Any int64 is allowed; siblings must differ.
            generator.manual_seed((request.sampling.seed + index) % 2**63)
        return Running(
            request=request,
            index=index,
            deliver=deliver,
            detokenizer=Detokenizer(tokenizer=self.tokenization.tokenizer),
            stops=StopStrings(stop=request.sampling.stop),
            generator=generator,
        )

    def tool_format(self, name: str) -> ToolFormat:
        """Return one of the formats available without vLLM."""
        own = HermesFormat() if name == "hermes" else own_tool_format(name)
        if own is None:
            raise SettingsError(
                f"{SETTING}={name}: this engine has hermes and {HARMONY_TOOLS}; vLLM has others"
            )
        return own

    def reasoning_format(self, name: str) -> ReasoningFormat:
        """Return one of the formats available without vLLM."""
        own = own_reasoning_format(name)
        if own is None:
            raise unknown_reasoning(name, reasoning_names())
        return own

    async def load_adapter(self, adapter: int, folder: Path) -> float:
        """Load an adapter between two turns; return the seconds that took."""

        def load() -> float:
            started = time.monotonic()
            self.model.add_adapter(adapter, folder)
            return time.monotonic() - started

        return await self.run_between_turns(load)

    async def drop_adapter(self, adapter: int) -> None:
        """Unload an adapter."""
        await self.run_between_turns(lambda: self.model.drop_adapter(adapter))

    async def load_full_weights(
        self, policy_version: int, folder: Path, sha256: Mapping[str, str]
    ) -> float:
        """Replace the weights between two turns; return the seconds that took.

        Caches are dropped: running completions compute keys and values again with the new weights.
        """

        def replace() -> float:
            started = time.monotonic()
            self.model.replace_weights(folder)
            self.weights_version = policy_version
            for completion in self.running:
                completion.cache = None
            return time.monotonic() - started

        await asyncio.to_thread(check_weights, folder, sha256)
        return await self.run_between_turns(replace)

    async def run_between_turns(self, command: Callable[[], T]) -> T:
        """Run `command` on the model's thread; return its result or raise its exception."""
        if self.thread is None or not self.thread.is_alive():
            raise Unavailable("the engine is not running", retry_after=1.0)
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(command())
            except Exception as error:
                future.set_exception(error)  # raised where it is awaited

        self.commands.put(run)
        return await asyncio.wrap_future(future)

    def work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the thread: commands first, then one token for every completion, until stopped."""
        try:
            while not self.stopping:
                self.run_commands(wait=not self.running)
                self.running = [c for c in self.running if not c.cancelled]
                # Sorted, so that the adapter changes once per version, not per completion.
                for completion in sorted(self.running, key=lambda c: c.request.adapter):
                    self.advance(completion)
        except Exception as error:
            logger.exception("the sampling thread died")
            reason = f"the sampling thread died: {error}"
            loop.call_soon_threadsafe(self.report_failure, reason)
        finally:
            for completion in self.running:
                completion.deliver(Unavailable("the engine has stopped", retry_after=1.0))

    def report_failure(self, reason: str) -> None:
        """Let `wait_for_failure` return."""
        if self.failure is not None and not self.failure.done():
            self.failure.set_result(reason)

    def run_commands(self, *, wait: bool) -> None:
        """Run the pending commands; with `wait`, wait for one first."""
        while True:
            try:
                command = self.commands.get(block=wait)
            except queue.Empty:
                return
            command()
            wait = False

    def advance(self, completion: Running) -> None:
        """Sample one more token of a completion."""
        request, sampling = completion.request, completion.request.sampling
        version = self.weights_version
        if self.weights_kind is WeightsKind.LORA:
            version = request.policy_version
            self.model.select(request.adapter)
        everything = [*request.prompt_token_ids, *completion.token_ids]
        new = everything if completion.cache is None else everything[-1:]
        logits, completion.cache = self.model.forward(new, completion.cache)
        if completion.grammar is not None:
            logits = completion.grammar.allow(logits)
        logprobs = processed_logprobs(logits, sampling, completion.counts)
        if torch.isnan(logprobs).any():
            completion.cancelled = True
            completion.deliver(TuneloopError("the model's output is not a number"))
            return
        token = choose(logprobs, sampling.temperature, completion.generator)
        if completion.grammar is not None:
            completion.grammar.accept(token)
        completion.token_ids.append(token)
        completion.counts[token] += 1
        completion.versions.append(version)
        completion.deliver(self.output(completion, token, logprobs))

    def output(self, completion: Running, token: int, logprobs: torch.Tensor) -> EngineOutput:
        """Return what the new token adds; decide whether the completion ends with it."""
        sampling = completion.request.sampling
        at_stop_token = token in self.tokenization.stop_token_ids
        at_limit = len(completion.token_ids) >= sampling.max_tokens
        ends = at_stop_token or at_limit
        text = ""
        if not completion.request.as_tokens:
            text = completion.detokenizer.add(token, ends=ends)
            text = completion.stops.add(text, ends=ends)
        reason = None
        if at_stop_token or completion.stops.stopped_by:
            reason = FinishReason.STOP
        elif at_limit:
            reason = FinishReason.LENGTH
        completion.cancelled = reason is not None
        return EngineOutput(
            index=completion.index,
            text=text,
            token_ids=(token,),
            logprobs=(float(logprobs[token]),),
            top_logprobs=()
            if sampling.top_logprobs is None
            else (self.candidates(logprobs, sampling.top_logprobs),),
            finish_reason=reason,
            stop_sequence=completion.stops.stopped_by,
            policy_version_spans=merge_spans(completion.versions) if reason else (),
        )

    def candidates(self, logprobs: torch.Tensor, count: int) -> tuple[TokenCandidate, ...]:
        """Return the most likely tokens, best first, without those that cannot be sampled."""
        values, ids = logprobs.topk(count)
        return tuple(
            TokenCandidate(token_id=token, logprob=value)
            for value, token in zip(values.tolist(), ids.tolist(), strict=True)
            if value > float("-inf")
        )
