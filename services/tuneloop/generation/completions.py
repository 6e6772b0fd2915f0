"""Turns a request into a stream of deltas and finals, and each final into a rollout.

The steps: tokenize, lease a version, sample with the engine (which checks its limits), collect,
publish. A completion that is cut off is published too, with finish reason `abort`: what was sampled
is data.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from tuneloop.errors import InvalidRequest, TuneloopError
from tuneloop.generation import metrics
from tuneloop.generation.coalescing import coalesce, message_seconds
from tuneloop.generation.engine import (
    Engine,
    EngineLimits,
    EngineOutput,
    EngineRequest,
    check_prompt_length,
    clip_max_tokens,
)
from tuneloop.generation.formats.model_formats import ModelFormats
from tuneloop.generation.outcomes import Outcomes
from tuneloop.generation.partial_completion import Delta, Final, PartialCompletion
from tuneloop.generation.prompts import Tokenization, TokenizedPrompt
from tuneloop.generation.requests import GenerationRequest
from tuneloop.generation.rollout_publisher import RolloutPublisher
from tuneloop.generation.schemas.trial import GrammarTrial
from tuneloop.generation.slots import Slots
from tuneloop.generation.swap.hot_swap import HotSwap
from tuneloop.generation.swap.lease import Lease
from tuneloop.host import lower_thread_priority
from tuneloop.policies import WeightsKind
from tuneloop.rollouts import (
    FinishReason,
    PolicyVersionSpan,
    Prompt,
    Rollout,
    choice_id,
    merge_spans,
)

MAX_CHARACTERS_PER_TOKEN = 100
"""A prompt with more is refused before it is tokenized."""
QUICK_CHARACTERS, QUICK_MESSAGES = 20_000, 100
"""A prompt within these is tokenized at once, in a few milliseconds."""
TOKENIZER_THREADS = 2


class Completions:
    """Answers requests with one engine."""

    def __init__(
        self,
        *,
        engine: Engine,
        limits: EngineLimits,
        tokenization: Tokenization,
        hot_swap: HotSwap,
        publisher: RolloutPublisher,
        max_concurrent: int,
        formats: ModelFormats | None = None,
        trial: GrammarTrial | None = None,
    ) -> None:
        self.engine = engine
        self.limits = limits
        self.tokenization = tokenization
        self.hot_swap = hot_swap
        self.publisher = publisher
        self.slots = Slots(max_concurrent)
        self.formats = formats or ModelFormats(tokens=tokenization)
        self.trial = trial
        # On few cores a long prompt would otherwise slow every stream down.
        self.tokenizers = ThreadPoolExecutor(
            TOKENIZER_THREADS, "tokenizer", initializer=lower_thread_priority
        )
        self.outcomes = Outcomes()

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[list[Delta | Final], None]:
        """Yield deltas and one final for each of the n completions; closing it aborts them.

        Raises `InvalidRequest`, `NotFound` (no such version), `Overloaded`, `Unavailable`.
        """
        started = time.monotonic()
        try:
            with self.count_running(request):
                self.formats.check(request.prompt)
                prompt = await self.tokenize(request.prompt)
                held = self.formats.constrain_to_tools(request.sampling, request.prompt)
                request = replace(request, sampling=held)
                if self.trial is not None:
                    await self.trial.check(request.sampling, request.caller)
                if request.clip_max_tokens:
                    sampling = clip_max_tokens(prompt.token_ids, request.sampling, self.limits)
                    request = replace(request, sampling=sampling)
                with (
                    self.hot_swap.lease(request.policy_version, route_by=request.route_by) as lease,
                    self.outcomes.count_outcome(lease.policy_version, bool(request.route_by)),
                ):
                    events = self.collect(request, prompt, lease, started)
                    batches = coalesce(events, lambda: message_seconds(self.slots.running))
                    try:
                        async for batch in batches:
                            yield batch
                    finally:
                        await batches.aclose()
        except TuneloopError as error:
            metrics.request_errors.labels(error.reason).inc()
            raise

    async def count_tokens(self, prompt: Prompt, caller: str) -> int:
        """Return the tokens of a conversation. Raises `InvalidRequest` and `Overloaded`."""
        with self.slots.take(caller, 1):
            self.formats.check(prompt)
            return len((await self.tokenize(prompt)).token_ids)

    async def tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        """Tokenize the prompt, after refusing one that is far too long.

        A long one is left to a thread: other requests stream on meanwhile.
        """
        characters = len(prompt.text or "") + sum(
            len(m.content) + len(m.reasoning) for m in prompt.messages
        )
        if prompt.tool_use is not None:
            characters += sum(len(t.description + t.parameters) for t in prompt.tool_use.tools)
        if characters > MAX_CHARACTERS_PER_TOKEN * self.limits.max_model_len:
            raise InvalidRequest(
                f"the prompt has {characters} characters; this model takes "
                f"{self.limits.max_model_len} tokens in prompt and completion together",
                param="messages" if prompt.messages else "prompt",
            )
        if len(prompt.messages) > self.limits.max_model_len:
            raise InvalidRequest(
                f"the prompt has {len(prompt.messages)} messages; this model takes "
                f"{self.limits.max_model_len} tokens in prompt and completion together",
                param="messages",
            )
        if prompt.token_ids is not None:
            check_prompt_length(len(prompt.token_ids), self.limits)
        if characters <= QUICK_CHARACTERS and len(prompt.messages) <= QUICK_MESSAGES:
            return self.tokenization.tokenize(prompt)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.tokenizers, self.tokenization.tokenize, prompt)

    @contextmanager
    def count_running(self, request: GenerationRequest) -> Iterator[None]:
        """Count the completions while they run; raise `Overloaded` if there are too many."""
        with self.slots.take(request.caller, request.sampling.n):
            metrics.running_requests.inc()
            try:
                yield
            finally:
                metrics.running_requests.dec()

    async def collect(
        self, request: GenerationRequest, prompt: TokenizedPrompt, lease: Lease, started: float
    ) -> AsyncGenerator[Delta | Final, None]:
        """Yield what the engine samples, and publish each completion when it ends or is aborted."""
        completions = self.begin(request, prompt, started)
        sampling = self.formats.for_engine(
            request.sampling, request.prompt, prompt.text, request.thinking_budget
        )
        # A greedy answer is the same however often it is sampled.
        once = request.sampling.temperature == 0
        rollouts: list[Rollout] = []
        outputs = self.engine.generate(
            EngineRequest(
                request_id=request.completion_id,
                prompt_token_ids=prompt.token_ids,
                sampling=replace(sampling, n=1) if once else sampling,
                policy_version=lease.policy_version,
                adapter=lease.live.adapter,
                with_tools=request.prompt.tool_use is not None,
                as_tokens=self.formats.thinks(request.prompt),
            )
        )
        try:
            async for output in outputs:
                sampled_by = self.sampled_by(lease.policy_version)
                if output.token_ids:
                    self.hot_swap.resumption.record_token(lease.live)
                for completion in completions if once else (completions[output.index],):
                    if completion.finished:  # by a stop string that the engine does not know
                        continue
                    own, delta = completion.add(replace(output, index=completion.index), sampled_by)
                    self.record_output(prompt, completion, own)
                    yield delta
                    if own.finish_reason is not None:
                        completion.finished = True
                        final, rollout = self.finish(request, prompt, completion, own)
                        rollouts.append(rollout)
                        if len(rollouts) == len(completions):
                            # Before the caller, who may be slow to take the final.
                            self.publish(request, rollouts)
                        yield final
                if len(rollouts) == len(completions):
                    break
        finally:
            try:
                await outputs.aclose()
            finally:
                if len(rollouts) < len(completions):
                    ended = [c for c in completions if not c.finished]
                    self.publish(
                        request, rollouts + [self.abort(request, prompt, c) for c in ended]
                    )

    def begin(
        self, request: GenerationRequest, prompt: TokenizedPrompt, started: float
    ) -> list[PartialCompletion]:
        """Return the completions of a request before their first token."""
        formats = self.formats
        return [
            PartialCompletion(
                i,
                started,
                parser=formats.parser(request.prompt),
                reader=formats.reader(request.sampling, request.prompt, prompt.text),
            )
            for i in range(request.sampling.n)
        ]

    def sampled_by(self, leased: int) -> int:
        """Return the version that samples now for a request that leased one."""
        full = self.engine.weights_kind is WeightsKind.FULL
        return self.hot_swap.serving if full else leased

    def record_output(
        self, prompt: TokenizedPrompt, completion: PartialCompletion, output: EngineOutput
    ) -> None:
        """Record the latency and the tokens of one output, and of its prompt if it is the first."""
        if not output.token_ids:
            return
        now = time.monotonic()
        first = len(completion.token_ids) == len(output.token_ids)
        if first and completion.index == 0:
            metrics.prompt_tokens.inc(len(prompt.token_ids))
        histogram = metrics.time_to_first_token if first else metrics.inter_token_latency
        histogram.observe(now - completion.last_time)
        completion.last_time = now
        metrics.completion_tokens.inc(len(output.token_ids))

    def finish(
        self,
        request: GenerationRequest,
        prompt: TokenizedPrompt,
        completion: PartialCompletion,
        output: EngineOutput,
    ) -> tuple[Final, Rollout]:
        """Return the final of a completion, and its rollout."""
        if output.finish_reason is None:
            raise AssertionError("a final follows a finish reason")
        spans = output.policy_version_spans
        if not spans or spans[-1].end != len(completion.token_ids):
            spans = merge_spans(completion.versions)
        last = spans[-1].policy_version if spans else self.hot_swap.serving
        final = Final(
            index=completion.index,
            completion_id=choice_id(request.completion_id, completion.index),
            token_ids=tuple(completion.token_ids),
            logprobs=tuple(completion.logprobs),
            finish_reason=output.finish_reason,
            policy_version_spans=spans,
            policy_version=last,
            prompt_tokens=len(prompt.token_ids),
            stop_sequence=output.stop_sequence,
            reasoning_tokens=completion.reasoning_tokens,
            candidate_text=completion.text if request.are_candidates else "",
        )
        return final, self.rollout(request, prompt, completion, output.finish_reason, spans)

    def abort(
        self, request: GenerationRequest, prompt: TokenizedPrompt, completion: PartialCompletion
    ) -> Rollout:
        """Return what was sampled after the caller disconnected or the engine failed."""
        spans = merge_spans(completion.versions)
        return self.rollout(request, prompt, completion, FinishReason.ABORT, spans)

    def rollout(
        self,
        request: GenerationRequest,
        prompt: TokenizedPrompt,
        completion: PartialCompletion,
        reason: FinishReason,
        spans: tuple[PolicyVersionSpan, ...],
    ) -> Rollout:
        """Return the rollout of a completion, and count it."""
        metrics.completions.labels(reason.value).inc()
        return Rollout(
            completion_id=choice_id(request.completion_id, completion.index),
            group_id=request.completion_id,
            policy=self.hot_swap.options.policy,
            tenant=request.tenant,
            user_hash=request.user_hash,
            messages=request.prompt.messages,
            prompt_text=prompt.text,
            completion_text=completion.text,
            reasoning_text=completion.reasoning,
            reasoning_tokens=completion.reasoning_tokens,
            prompt_token_ids=prompt.token_ids,
            completion_token_ids=tuple(completion.token_ids),
            generation_logprobs=tuple(completion.logprobs),
            finish_reason=reason,
            policy_version_spans=spans,
            sampling=request.sampling,
            finished_time=datetime.now(UTC),
            source=request.source,
            columns=request.columns,
            session_id=request.session_id,
            tags=request.tags,
            traceparent=request.traceparent,
        )

    def publish(self, request: GenerationRequest, rollouts: Sequence[Rollout]) -> None:
        """Hand the rollouts of a request that have tokens to the publisher."""
        sampled = [r for r in rollouts if r.completion_token_ids]
        if request.publish_rollout and sampled:
            put = self.publisher.hold if request.are_candidates else self.publisher.publish
            put(sampled)
