"""The whole loop in one process: gateway, generation on a reciting engine, learner, one bus."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.gateway_stack import Stack, running_gateway, serve
from support.learner_parts import Parts
from support.waiting import until

from tuneloop import tracing
from tuneloop.bus.memory import MemoryBus
from tuneloop.generation.completions import Completions
from tuneloop.generation.engine import (
    EngineLimits,
    EngineOutput,
    EngineRequest,
    check_limits,
)
from tuneloop.generation.formats.model_formats import ModelFormats
from tuneloop.generation.formats.reasoning import ReasoningFormat
from tuneloop.generation.formats.tool_calls import ToolFormat
from tuneloop.generation.prompts import Tokenization
from tuneloop.generation.rollout_publisher import RolloutPublisher
from tuneloop.generation.servicer import GenerationServicer
from tuneloop.generation.swap.hot_swap import HotSwap, SwapOptions
from tuneloop.generation.swap.routing import Routing
from tuneloop.learner import trace_links
from tuneloop.learner.ledger.queue import ready
from tuneloop.policies import WeightsKind
from tuneloop.rollouts import FinishReason
from tuneloop.v1 import generation_pb2_grpc

LIMITS = EngineLimits(max_model_len=512, vocab_size=384, max_logprobs=20)
ANSWER = ("Xyzzy ", "plugh ", "quux.")


class RecitingEngine:
    """Answers everything within `LIMITS` with `ANSWER`, and loads whatever it is given."""

    name = "reciting"
    weights_kind = WeightsKind.LORA

    def __init__(self) -> None:
        self.failure: Exception | None = None

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
        check_limits(request.prompt_token_ids, request.sampling, LIMITS)
        for index in range(request.sampling.n):
            for place, piece in enumerate(ANSWER):
                if self.failure is not None and place:
                    raise self.failure
                yield EngineOutput(
                    index=index,
                    text=piece,
                    token_ids=(7 + place,),
                    logprobs=(-0.5,),
                    top_logprobs=() if request.sampling.top_logprobs is None else ((),),
                    finish_reason=FinishReason.STOP if place == len(ANSWER) - 1 else None,
                )

    async def load_adapter(self, policy_version: int, folder: Path) -> float:
        return 0.001

    async def drop_adapter(self, policy_version: int) -> None: ...


@dataclass
class Flow:
    """Everything that takes part."""

    stack: Stack
    engine: RecitingEngine
    hot_swap: HotSwap
    learner: Parts
    http: httpx.AsyncClient

    async def ask(self, text: str, trace: str = "") -> httpx.Response:
        body = {"model": "tuneloop", "messages": [{"role": "user", "content": text}]}
        headers = {"traceparent": trace} if trace else {}
        return await self.http.post("/v1/chat/completions", json=body, headers=headers)

    async def judge(self, body: dict[str, object], trace: str = "") -> httpx.Response:
        headers = {"traceparent": trace} if trace else {}
        return await self.http.post("/v1/feedback", json=body, headers=headers)

    async def learn(self) -> None:
        """A step on what there is, and a version of it."""
        self.learner.clock.now += 5
        assert await self.learner.turn()
        self.learner.clock.now += self.learner.settings.publish_every_seconds
        await self.learner.turn()

    @asynccontextmanager
    async def serving_what_is_released(self) -> AsyncIterator[None]:
        routing = Routing(self.stack.bus, self.hot_swap, "tuneloop")
        task = asyncio.create_task(routing.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def flowing(
    model: Path,
    folder: Path,
    tool_format: ToolFormat | None = None,
    reasoning_format: ReasoningFormat | None = None,
) -> AsyncIterator[Flow]:
    learner = Parts(folder=folder)
    publisher = RolloutPublisher(MemoryBus(), buffer_size=100)
    options = SwapOptions(
        policy="tuneloop", replica="r1", base_model=model, max_live_versions=2, max_lora_rank=16
    )
    engine = RecitingEngine()
    hot_swap = HotSwap(engine, learner.store, options, publisher.publish_activation)  # type: ignore[arg-type]
    tokenization = Tokenization(model)
    completions = Completions(
        engine=engine,  # type: ignore[arg-type]
        limits=LIMITS,
        tokenization=tokenization,
        hot_swap=hot_swap,
        publisher=publisher,
        max_concurrent=64,
        formats=ModelFormats(tokens=tokenization, tools=tool_format, reasoning=reasoning_format),
    )
    server = await serve(
        generation_pb2_grpc.add_GenerationServiceServicer_to_server,
        GenerationServicer(completions, base_model="tiny"),
    )
    async with running_gateway(generation_address=f"127.0.0.1:{server.port}") as stack:
        learner.bus = publisher.bus = stack.bus
        learner = learner.again()
        publisher.start()
        async with httpx.AsyncClient(base_url=stack.url, timeout=20) as http, learner.taking_in():
            yield Flow(stack, engine, hot_swap, learner, http)
        await publisher.stop(1)
    await server.stop()


async def recorded(flow: Flow, *, ready_samples: int) -> None:
    """Wait until the ledger can learn from so many judgements."""
    await until(lambda: ready.counts(flow.learner.database, "kto").ready == ready_samples)


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Traces of this process are on."""
    exporter = InMemorySpanExporter()
    trace_links.clear_links()
    tracing.start_with(SimpleSpanProcessor(exporter), "test")
    yield exporter
    tracing.stop()
    trace_links.clear_links()
