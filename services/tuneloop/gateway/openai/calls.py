"""Answers of the generation service: a body as its requests, and their events as one stream."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from tuneloop import wire
from tuneloop.api.openai import BestOf, Usage
from tuneloop.errors import InvalidRequest, Unavailable
from tuneloop.gateway import metrics
from tuneloop.gateway.context import Gateway
from tuneloop.gateway.edge.limits import Spending
from tuneloop.gateway.edge.redaction import redact_request
from tuneloop.gateway.errors import ModelNotFound
from tuneloop.gateway.openai.generated_events import Event, interleave, route_call
from tuneloop.gateway.openai.reasoning import template_options
from tuneloop.gateway.openai.response_format import schema_text
from tuneloop.gateway.openai.schemas import (
    BEST_OF,
    ChatRequest,
    CompletionRequest,
    SamplingRequest,
    candidates_of,
)
from tuneloop.gateway.openai.tools import tool_use
from tuneloop.rollouts import FinishReason, SamplingParameters, choice_id
from tuneloop.text.messages import conversation
from tuneloop.v1 import generation_pb2, rollout_pb2


@dataclass(slots=True, kw_only=True)
class GeneratedAnswer:
    """One HTTP answer while it is generated: its id, its calls, its version and its usage."""

    group_id: str
    """Of the request; feedback names `completion_id`."""
    created: int
    """Unix seconds."""
    started: float
    """Monotonic seconds."""
    requests: tuple[generation_pb2.GenerateRequest, ...]
    n: int
    with_tools: bool
    """Whether functions may be called."""
    are_candidates: bool = False
    """Whether the best of the completions is the only choice."""
    best_of: BestOf | None = None
    """Which of the candidates that is; None before it is chosen, and without candidates."""
    policy_version: int | None = None
    """Of the first event; None before it."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    """Of the completion tokens, those of thoughts."""
    first_token_seconds: float | None = None
    """From the start to the first event; None before it."""
    called: set[int] = field(default_factory=set)
    """Choices in which a function was called."""
    finished: dict[int, str] = field(default_factory=dict)
    """The finish reason of each choice that has ended, as OpenAI's API has it."""

    @property
    def completion_id(self) -> str:
        """The id of the answer: of its first choice, or of the best candidate once it is chosen."""
        return choice_id(self.group_id, self.best_of["chosen"]) if self.best_of else self.group_id

    @property
    def completions(self) -> int:
        """The number of completions that are sampled."""
        return self.n * len(self.requests)

    @property
    def choices(self) -> int:
        """The number of choices in the answer."""
        return 1 if self.are_candidates else self.completions

    def completion_id_of(self, choice: int) -> str:
        """Return the id of one choice, which feedback names."""
        if self.are_candidates:
            return self.completion_id
        return choice_id(self.requests[choice // self.n].completion_id, choice % self.n)

    def usage(self) -> Usage:
        """Return token counts in OpenAI's form."""
        counts: Usage = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }
        if self.reasoning_tokens:
            counts["completion_tokens_details"] = {"reasoning_tokens": self.reasoning_tokens}
        return counts

    def record_event(self, choice: int, event: generation_pb2.GenerateResponse) -> None:
        """Record an event: the first version, the usage, the choices that have ended."""
        if event.WhichOneof("event") == "delta":
            if self.policy_version is None:
                self.policy_version = event.delta.policy_version
                self.first_token_seconds = time.monotonic() - self.started
                metrics.time_to_first_token_seconds.observe(self.first_token_seconds)
            if event.delta.tool_calls:
                self.called.add(choice)
            return
        if self.policy_version is None:
            self.policy_version = event.final.policy_version
        if choice % self.n == 0:
            self.prompt_tokens += event.final.usage.prompt_tokens
        self.completion_tokens += event.final.usage.completion_tokens
        self.reasoning_tokens += event.final.reasoning_tokens
        reason = finish_reason(event.final.finish_reason, called=choice in self.called)
        self.finished[choice] = reason


def finish_reason(number: rollout_pb2.FinishReason, *, called: bool) -> str:
    """Return OpenAI's finish reason; `abort` if the service stopped the choice."""
    reason = wire.finish_reason_from_proto.get(number, FinishReason.ABORT)
    return "tool_calls" if called and reason is FinishReason.STOP else str(reason)


def chat_answer(
    gateway: Gateway,
    body: ChatRequest,
    *,
    train: bool,
    key_id: str,
    session_id: str = "",
    prefix: str = "chatcmpl",
    name: str | None = None,
) -> GeneratedAnswer:
    """Return the answer to a chat, ready to be generated. Raises `ModelNotFound`.

    Its id begins with `prefix`, and is made of `name`, if it has one.
    """
    top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    limit = body.max_completion_tokens or body.max_tokens
    candidates = candidates_of(body)
    request = make_request(
        gateway,
        body,
        prefix,
        limit,
        top_logprobs,
        train=train,
        name=name,
        n=candidates if candidates > 1 else body.n or 1,
    )
    if candidates > 1:
        refuse_greedy(request)
        request.are_candidates = True
    request.api_key_id, request.session_id = key_id, session_id
    request.chat.CopyFrom(wire.messages_to_proto(conversation(body.messages)))
    options = template_options(
        body.reasoning_effort, body.enable_thinking, body.chat_template_kwargs
    )
    request.template_options.update(options)
    if body.thinking_token_budget is not None:
        request.thinking_budget = body.thinking_token_budget
    use = tool_use(body.tools, body.tool_choice, body.parallel_tool_calls)
    if use is not None:
        request.tool_use.CopyFrom(wire.tool_use_to_proto(use))
    return make_answer([request])


def text_answer(
    gateway: Gateway, body: CompletionRequest, *, train: bool, key_id: str, session_id: str = ""
) -> GeneratedAnswer:
    """Return the answer to plain prompts, with one call for each. Raises `ModelNotFound`."""
    if candidates_of(body) > 1:
        raise InvalidRequest(f"{BEST_OF}: plain prompts have none; chats do", param=BEST_OF)
    requests = []
    for prompt in body.prompt:
        request = make_request(
            gateway, body, "cmpl", body.max_tokens, body.logprobs, train=train, n=body.n or 1
        )
        request.api_key_id, request.session_id = key_id, session_id
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.tokens.token_ids.extend(prompt)
        requests.append(request)
    return make_answer(requests)


def make_answer(requests: Sequence[generation_pb2.GenerateRequest]) -> GeneratedAnswer:
    return GeneratedAnswer(
        group_id=requests[0].completion_id,
        created=int(time.time()),
        started=time.monotonic(),
        requests=tuple(requests),
        n=requests[0].sampling.n,
        with_tools=requests[0].HasField("tool_use"),
        are_candidates=requests[0].are_candidates,
    )


def make_request(
    gateway: Gateway,
    body: SamplingRequest,
    prefix: str,
    max_tokens: int | None,
    top_logprobs: int | None,
    *,
    train: bool,
    n: int,
    name: str | None = None,
) -> generation_pb2.GenerateRequest:
    """Return a request for `n` completions, without its prompt. Raises `ModelNotFound`."""
    settings = gateway.settings
    if body.model != settings.policy:
        raise ModelNotFound(
            f"no model {body.model[:100]!r}; this service has {settings.policy!r}", param="model"
        )
    user = body.user or body.safety_identifier
    user_hash = gateway.ids.user_hash(settings.tenant, user)
    completion_id = gateway.ids.make(prefix, settings.tenant, user_hash, n, name=name)
    return generation_pb2.GenerateRequest(
        completion_id=completion_id,
        policy=settings.policy,
        sampling=make_sampling(
            body,
            max_tokens or settings.default_max_tokens,
            top_logprobs,
            settings.default_temperature,
            n,
        ),
        tenant=settings.tenant,
        user_hash=user_hash,
        policy_version=body.policy_version,
        publish_rollout=train,
        clip_max_tokens=max_tokens is None,
        tags=body.tags,
        # Anonymous users share one hash: all of them would be in a canary, or none.
        route_by=user_hash if user else completion_id,
    )


def make_sampling(
    body: SamplingRequest, max_tokens: int, top_logprobs: int | None, temperature: float, n: int
) -> rollout_pb2.SamplingParameters:
    """Return the sampling parameters, with this service's defaults."""
    return wire.sampling_to_proto(
        SamplingParameters(
            temperature=0.0 if body.top_p == 0 else default_of(body.temperature, temperature),
            top_p=body.top_p or 1.0,
            top_k=max(0, body.top_k or 0),
            max_tokens=max_tokens,
            stop=body.stop,
            n=n,
            seed=body.seed,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            top_logprobs=top_logprobs,
            logit_bias=body.logit_bias or {},
            json_schema=schema_text(body.response_format),
        )
    )


def refuse_greedy(request: generation_pb2.GenerateRequest) -> None:
    """Raise `InvalidRequest` for candidates that would all be the same."""
    if request.sampling.temperature == 0:
        raise InvalidRequest(
            f"{BEST_OF}: at temperature 0 all candidates are the same: raise temperature",
            param=BEST_OF,
        )


def default_of(value: float | None, default: float) -> float:
    return default if value is None else value


async def events(gateway: Gateway, answer: GeneratedAnswer) -> AsyncGenerator[Event]:
    """Yield every event of the answer, choices interleaved; closing it cancels the calls.

    Raises `Overloaded` if the key has too few tokens left, the service's error, or `Unavailable`
    if a choice ended without its final event.
    """
    if gateway.redactor is not None:
        for request in answer.requests:
            await redact_request(gateway.redactor, request)
    spending = Spending(answer.requests, answer.n, gateway.costs)
    calls = [route_call(gateway, r, i * answer.n) for i, r in enumerate(answer.requests)]
    merged = calls[0] if len(calls) == 1 else interleave(calls)
    try:
        async with aclosing(merged):
            async for choice, event in merged:
                answer.record_event(choice, event)
                spending.note(choice, event)
                yield choice, event
    except (asyncio.CancelledError, GeneratorExit):
        spending.leave()
        raise
    finally:
        spending.close()
    if len(answer.finished) < answer.completions:
        raise Unavailable("generation stopped before the answer was complete", retry_after=1.0)
