"""One generation replica: engine, hot swap, routing, publisher and gRPC server, wired together."""

import asyncio
import contextlib
import importlib.util
import logging
from dataclasses import dataclass
from typing import Any

from tuneloop.bus import Bus
from tuneloop.errors import SettingsError
from tuneloop.generation.completions import Completions
from tuneloop.generation.engine import Engine, EngineRequest
from tuneloop.generation.formats.choice import AUTO, NONE, choose_reasoning, choose_tools
from tuneloop.generation.formats.model_formats import ModelFormats
from tuneloop.generation.prompts import Tokenization
from tuneloop.generation.rollout_publisher import RolloutPublisher
from tuneloop.generation.schemas.trial import GrammarTrial
from tuneloop.generation.servicer import GenerationServicer
from tuneloop.generation.settings import GenerationSettings
from tuneloop.generation.swap.hot_swap import HEADROOM, HotSwap, SwapOptions
from tuneloop.generation.swap.lease import Lease
from tuneloop.generation.swap.routing import Routing
from tuneloop.gpus.quantization import Quantization
from tuneloop.redaction.redactor import make_redactor
from tuneloop.rollouts import SamplingParameters
from tuneloop.rpc.server import Server
from tuneloop.v1 import generation_pb2_grpc
from tuneloop.weights.shapes import read_quantization

logger = logging.getLogger("tuneloop.generation")

REDACTION_SECONDS = 30.0
"""Longest that a completion is examined for personal data; nobody waits for it."""


@dataclass(slots=True, kw_only=True)
class Replica:
    """The parts, in the order they start."""

    settings: GenerationSettings
    engine: Engine
    hot_swap: HotSwap
    routing: Routing
    publisher: RolloutPublisher
    server: Server
    tasks: list[asyncio.Task[Any]]
    trial: GrammarTrial | None = None

    async def start(self) -> None:
        """Load the model and the stable version; serve once the engine answers."""
        settings = self.settings
        if self.publisher.redactor is not None:
            await self.publisher.redactor.start()
        limits = await self.engine.start()
        self.publisher.start()
        await self.routing.activate_stable()
        tokenization = Tokenization(settings.model)
        self.trial = GrammarTrial(
            tokenization.tokenizer, limits.vocab_size, tokenization.stop_token_ids
        )
        await self.trial.prepare()
        completions = Completions(
            engine=self.engine,
            limits=limits,
            tokenization=tokenization,
            hot_swap=self.hot_swap,
            publisher=self.publisher,
            max_concurrent=settings.max_concurrent_requests,
            formats=model_formats(settings, self.engine, tokenization),
            trial=self.trial,
        )
        base_model = settings.base_model_name or settings.model.name
        servicer = GenerationServicer(completions, base_model=base_model)
        self.server.add(generation_pb2_grpc.add_GenerationServiceServicer_to_server, servicer)
        with self.hot_swap.lease() as lease:
            await sample_one_token(self.engine, lease)
        await self.server.start()
        await self.server.set_serving(True)
        logger.info(
            "ready: %s, version %d, on %s", base_model, self.hot_swap.serving, self.engine.name
        )

    def background_tasks(self) -> list[asyncio.Task[Any]]:
        """Return the tasks whose end means a failure."""
        if not self.tasks:
            self.tasks.append(asyncio.create_task(self.routing.run(), name="routing"))
            self.tasks.append(asyncio.create_task(self.engine.wait_for_failure(), name="engine"))
            if self.publisher.task is not None:
                self.tasks.append(self.publisher.task)
        return self.tasks

    async def stop(self) -> None:
        """Refuse new requests, drain the running ones, publish, stop the engine."""
        await self.server.stop()
        await self.publisher.stop(self.settings.drain_seconds)
        if self.publisher.redactor is not None:
            await self.publisher.redactor.close()
        for task in self.tasks:
            task.cancel()
        for task in self.tasks:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task  # its error, if any, was reported where it was watched
        if self.trial is not None:
            await self.trial.close()
        await self.engine.stop()


def make_replica(settings: GenerationSettings, bus: Bus) -> Replica:
    """Wire the parts, without starting anything."""
    redactor = make_redactor(processes=1, seconds=REDACTION_SECONDS)
    publisher = RolloutPublisher(bus, buffer_size=settings.rollout_buffer_size, redactor=redactor)
    engine = make_engine(settings)
    options = SwapOptions(
        policy=settings.policy,
        replica=settings.replica,
        base_model=settings.model,
        max_live_versions=settings.max_live_versions,
        max_lora_rank=settings.max_lora_rank,
    )
    hot_swap = HotSwap(engine, settings.open_store(), options, publisher.publish_activation)
    return Replica(
        settings=settings,
        engine=engine,
        hot_swap=hot_swap,
        routing=Routing(bus, hot_swap, settings.policy, settings.role),
        publisher=publisher,
        server=Server(
            host=settings.host,
            port=settings.port,
            tls=settings.grpc_tls,
            peers=settings.grpc_peers,
            token=settings.grpc_token,
            drain_seconds=settings.drain_seconds,
        ),
        tasks=[],
    )


def make_engine(settings: GenerationSettings) -> Engine:
    """Return the engine of the settings; `auto` is vLLM if it is installed."""
    quantization = read_quantization(settings.model)
    if quantization is not None:
        quantization.check_kind(str(settings.model), settings.weights_kind)
    installed = importlib.util.find_spec("vllm") is not None
    if settings.engine == "vllm" and not installed:
        raise SettingsError("TUNELOOP_GENERATION_ENGINE=vllm: vllm is not installed")
    if settings.engine == "transformers" or not installed:
        from tuneloop.generation.transformers.engine import TransformersEngine

        return TransformersEngine(
            settings.model, settings.weights_kind, settings.max_model_len, settings.threads
        )
    if quantization is not None and quantization.missing_packages():
        check_plugin(str(settings.model), quantization)
    from tuneloop.generation.vllm.engine import VllmEngine, VllmOptions

    return VllmEngine(
        VllmOptions(
            model=settings.model,
            weights_kind=settings.weights_kind,
            max_model_len=settings.max_model_len,
            max_lora_rank=settings.max_lora_rank,
            max_adapters=settings.max_live_versions + HEADROOM,
            kv_cache_gib=settings.kv_cache_gib,
            keep_kv_cache=settings.keep_kv_cache,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            tensor_parallel=settings.tensor_parallel,
            pipeline_parallel=settings.pipeline_parallel,
            max_sequences=settings.max_concurrent_requests,
            threads=settings.threads,
        )
    )


def check_plugin(model: str, quantization: Quantization) -> None:
    """Raise `SettingsError` without the plugin that has vLLM's part for bitsandbytes."""
    if importlib.util.find_spec("vllm_bnb_plugin") is None:
        raise SettingsError(
            f"{model} is quantized with {quantization.method}, which vLLM needs a plugin for: "
            f"pip install {quantization.packages}",
            param="model",
        )


def model_formats(
    settings: GenerationSettings, engine: Engine, tokenization: Tokenization
) -> ModelFormats:
    """Return the formats of the settings, those `auto` as the model tells, and log them.

    Raises `SettingsError` for one that the engine does not have.
    """
    reasoning, tools = settings.reasoning_parser, settings.tool_parser or NONE
    if reasoning == AUTO:
        reasoning = choose_reasoning(tokenization.tokenizer) or NONE
    if tools == AUTO:
        tools = choose_tools(tokenization.tokenizer) or NONE
        if tools != NONE and not suits(engine, tools):
            tools = NONE
    logger.info("thoughts are read as %s, calls of functions as %s", reasoning, tools)
    return ModelFormats(
        tokens=tokenization,
        reasoning=None if reasoning == NONE else engine.reasoning_format(reasoning),
        tools=None if tools == NONE else engine.tool_format(tools),
    )


def suits(engine: Engine, tools: str) -> bool:
    """Return whether the engine has a format of calls that the model's template tells of."""
    try:
        engine.tool_format(tools)
    except SettingsError as error:
        logger.warning("functions cannot be called: %s", error)
        return False
    return True


async def sample_one_token(engine: Engine, lease: Lease) -> None:
    """Sample one token from the served version: proof that a request would be answered."""
    request = EngineRequest(
        request_id="start",
        prompt_token_ids=(0,),
        sampling=SamplingParameters(max_tokens=1),
        policy_version=lease.policy_version,
        adapter=lease.live.adapter,
    )
    async for _ in engine.generate(request):
        pass
