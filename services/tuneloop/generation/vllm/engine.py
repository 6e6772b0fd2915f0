"""The engine on vLLM's `AsyncLLM`; `worker` and `staging` run inside vLLM's worker process.

LoRA versions are adapters by `lora_int_id`; an id is never loaded twice with different weights, as
vLLM keeps what it computed by them. Full weights are swapped between
`pause_generation(mode="keep")` and `resume_generation`; vLLM labels every token with the weights
that sampled it, and those labels become `policy_version_spans`.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.errors import InvalidRequest, Unavailable, WeightsRefused
from tuneloop.generation.engine import (
    EngineLimits,
    EngineOutput,
    EngineRequest,
    check_limits,
    grammar_problem,
)
from tuneloop.generation.formats.choice import own_reasoning_format, own_tool_format
from tuneloop.generation.formats.reasoning import ReasoningFormat
from tuneloop.generation.formats.tool_calls import ToolFormat
from tuneloop.generation.vllm.environment import bind_threads, prepare_environment
from tuneloop.generation.vllm.requests import first_line, output_of, sampling_params
from tuneloop.gpus.host_memory import CPU_CACHE
from tuneloop.gpus.memory import GIB, SCHEDULED_SEQUENCES, SCHEDULED_TOKENS
from tuneloop.policies import WeightsKind
from tuneloop.reaper import Reaper
from tuneloop.weights import shapes

logger = logging.getLogger("tuneloop.generation")
MAX_LOGPROBS = 20
HEALTH_INTERVAL = 0.5
"""Seconds between checks that the engine's processes are alive."""
STAGING_INTERVAL = 0.05
"""Seconds between checks whether new weights are loaded."""
STOP_SECONDS = 1.0
"""How long the engine's processes get to exit."""
CPU_SCHEDULED_TOKENS = 256
"""Tokens in one pass on a CPU. A long prompt stops all streams for the time of a pass: seconds with
vLLM's 2,048, two cores and a model of 135 million parameters."""
IN_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks vLLM can be started with; a smaller adapter fits a larger one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmOptions:
    """The options that the engine starts with."""

    model: Path
    weights_kind: WeightsKind
    max_model_len: int | None
    """None: the model's own limit."""
    max_lora_rank: int
    max_adapters: int
    """Adapters in memory at once; more would evict one that requests still use."""
    kv_cache_gib: float | None
    """Memory of the key-value cache; None: 1 on a CPU, the rest of its share on a GPU."""
    gpu_memory_utilization: float
    """On a GPU: the share of its memory to use."""
    threads: int
    """On a CPU: threads to compute with; 0 uses all that this process may use."""
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    keep_kv_cache: bool = False
    """Full weights: requests that run keep their key-value cache over a swap."""
    max_sequences: int = SCHEDULED_SEQUENCES
    """On a GPU: completions in one pass."""


class VllmEngine:
    """Continuous batching, many adapters in one batch; runs in processes of its own."""

    name = "vllm"

    def __init__(self, options: VllmOptions) -> None:
        self.options = options
        self.weights_kind = options.weights_kind
        self.limits: EngineLimits | None = None
        self.llm: Any = None
        self.reaper: Reaper | None = None
        self.adapters: dict[int, Any] = {}
        self.broken: str | None = None
        self.weights_lock = asyncio.Lock()
        self.keep_kv_cache = options.keep_kv_cache
        self.cache_salt: str | None = None
        """Tells the prefixes in vLLM's cache apart by the weights they were computed with."""
        self.loads_twin = False
        """Whether full weights are loaded into a twin of the model: where memory is plenty, on a
        CPU. A GPU has none for it."""

    async def start(self) -> EngineLimits:
        """Load the base model (version 0) and be ready."""
        prepare_environment(self.options.threads)
        self.reaper = Reaper(descendants=True)
        started = time.monotonic()
        # In a thread, including the import: a signal to stop must not wait for it.
        self.llm = await asyncio.to_thread(start_llm, self.options)
        await self.llm.update_weight_version("0")
        self.loads_twin = self.llm.vllm_config.device_config.device_type == "cpu"
        model_config = self.llm.model_config
        self.limits = EngineLimits(
            max_model_len=model_config.max_model_len,
            vocab_size=model_config.get_vocab_size(),
            max_logprobs=MAX_LOGPROBS,
        )
        logger.info("vLLM is ready after %.1f s", time.monotonic() - started)
        return self.limits

    async def stop(self) -> None:
        """Abort running requests and end the engine's processes."""
        if self.llm is not None:
            # It reports the end of its processes as a crash, in many lines.
            logging.getLogger("vllm").setLevel(logging.CRITICAL)
            await asyncio.to_thread(self.llm.shutdown, STOP_SECONDS)
            self.llm = None
        if self.reaper is not None:
            await asyncio.to_thread(self.reaper.close)
            self.reaper = None

    async def wait_for_failure(self) -> str:
        """Wait until the engine's processes have died; return the reason."""
        while self.broken is None:
            if self.llm is not None and self.llm.errored:
                self.broken = "vLLM's engine process died"
            await asyncio.sleep(HEALTH_INTERVAL)
        return self.broken

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
        """Stream outputs; closing the iterator aborts the request."""
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        if self.llm is None or self.limits is None:
            raise Unavailable("the engine is not running", retry_after=1.0)
        check_limits(request.prompt_token_ids, request.sampling, self.limits)
        try:
            parameters = sampling_params(request)
        except ValueError as error:
            raise InvalidRequest(first_line(error)) from error
        stream = self.llm.generate(
            tokens_input(list(request.prompt_token_ids), cache_salt=self.cache_salt),
            parameters,
            request.request_id,
            lora_request=self.adapter(request.adapter),
        )
        counts: dict[int, int] = {}
        try:
            async for output in stream:
                for completion in output.outputs:
                    tokens = counts.get(completion.index, 0) + len(completion.token_ids)
                    counts[completion.index] = tokens
                    yield output_of(completion, request, tokens, self.weights_kind)
        except (VLLMClientError, ValueError) as error:
            if not request.sampling.constrained:
                raise InvalidRequest(str(error)) from error
            param = request.sampling.grammar_field
            raise InvalidRequest(f"{param}: {grammar_problem(error)}", param=param) from error
        except EngineDeadError as error:
            raise Unavailable("the engine died and is being restarted", retry_after=5.0) from error
        finally:
            await stream.aclose()

    def tool_format(self, name: str) -> ToolFormat:
        """Return one of vLLM's tool parsers, or our own."""
        from tuneloop.generation.vllm.tools import VllmToolFormat

        return own_tool_format(name) or VllmToolFormat(name, self.llm.get_tokenizer())

    def reasoning_format(self, name: str) -> ReasoningFormat:
        """Return one of vLLM's reasoning parsers, or our own."""
        from tuneloop.generation.vllm.reasoning import vllm_reasoning_format

        own = own_reasoning_format(name)
        return own or vllm_reasoning_format(name, self.llm.get_tokenizer())

    def adapter(self, number: int) -> Any:
        """Return the adapter to sample with; None for the base model and for full weights."""
        if self.weights_kind is WeightsKind.FULL or number == 0:
            return None
        adapter = self.adapters.get(number)
        if adapter is None:
            raise Unavailable(f"adapter {number} is not loaded", retry_after=1.0)
        return adapter

    async def load_adapter(self, adapter: int, folder: Path) -> float:
        """Load an adapter beside the others; return the seconds that held decoding up."""
        from vllm.lora.request import LoRARequest

        if adapter in self.adapters:
            return 0.0
        async with self.weights_lock:
            await self.stage(f"adapter {adapter}", "stage_adapter", adapter, str(folder))
            try:
                seconds = await self.llm.collective_rpc("commit_staged")
            except Exception as error:
                self.raise_if_dead(error)
                raise WeightsRefused(f"adapter {adapter}: {first_line(error)}") from error
        self.adapters[adapter] = LoRARequest(
            lora_name=f"adapter-{adapter}", lora_int_id=adapter, lora_path=str(folder)
        )
        return float(max(seconds))

    async def drop_adapter(self, adapter: int) -> None:
        """Unload an adapter that no request holds."""
        if self.adapters.pop(adapter, None) is None:
            return
        try:
            await self.llm.remove_lora(adapter)
        except Exception as error:
            self.raise_if_dead(error)
            raise Unavailable(f"adapter {adapter} was not dropped: {error}") from error

    async def load_full_weights(
        self, policy_version: int, folder: Path, sha256: Mapping[str, str]
    ) -> float:
        """Replace the weights in place; return the seconds in which nothing was sampled.

        Requests in flight keep their tokens; their key-value cache is computed again with the new
        weights (`clear_cache`), so that every later log-prob is by those weights. With
        `keep_kv_cache` they keep it, and requests that start later do not see it.
        """
        name = f"version {policy_version}"
        async with self.weights_lock:
            await asyncio.to_thread(shapes.check_full, self.options.model, folder)
            twin = self.loads_twin
            await self.stage(name, "stage_weights", str(folder), dict(sha256), twin)
            paused = time.monotonic()
            keeps = self.keep_kv_cache
            await self.llm.pause_generation(mode="keep", clear_cache=not keeps)
            # Not resumed after a failure: it would sample from mixed weights.
            await self.commit_full_weights(policy_version)
            self.cache_salt = secrets.token_hex(8) if keeps else None
            await self.llm.resume_generation()
            return time.monotonic() - paused

    async def stage(self, name: str, method: str, *arguments: Any) -> None:
        """Load what can be loaded while decoding continues; a failure changes nothing."""
        try:
            await self.llm.collective_rpc(method, args=arguments)
            ready = False
            while not ready:
                # A call waits for the step that runs, so it is not made too early.
                await asyncio.sleep(STAGING_INTERVAL)
                ready = all(await self.llm.collective_rpc("staged"))
        except Exception as error:
            self.raise_if_dead(error)
            # Other ranks may have loaded it.
            await self.llm.collective_rpc("discard_staged")
            raise WeightsRefused(f"{name}: {first_line(error)}") from error

    async def commit_full_weights(self, policy_version: int) -> None:
        """Put staged weights into the paused engine; after a failure it cannot continue."""
        try:
            await self.llm.collective_rpc("commit_staged")
            await self.llm.update_weight_version(str(policy_version))
        except Exception as error:
            # Some tensors may be new by now, and vLLM cannot undo that.
            self.broken = f"replacing the weights by version {policy_version} failed: {error}"
            raise Unavailable(self.broken, retry_after=5.0) from error

    def raise_if_dead(self, error: Exception) -> None:
        """Raise `Unavailable` if `error` came from an engine that has died."""
        if self.llm is None or self.llm.errored:
            raise Unavailable("the engine died and is being restarted", retry_after=5.0) from error


def start_llm(options: VllmOptions) -> Any:
    """Import vLLM and start its processes. Blocks for half a minute on a CPU."""
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = engine_arguments(options)
    if arguments.distributed_executor_backend == IN_PROCESS:
        bind_threads()
    return AsyncLLM.from_engine_args(arguments)


def engine_arguments(options: VllmOptions) -> Any:
    """Return `AsyncEngineArgs` for this machine."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    arguments: dict[str, Any] = {
        "model": str(options.model),
        "max_model_len": options.max_model_len,
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": MAX_LOGPROBS,
        "disable_log_stats": True,
        "enable_prefix_caching": True,
        "use_tqdm_on_load": False,
        # With the default of 0 the same requests would get the same answers after each start.
        "seed": secrets.randbelow(2**31),
        "worker_extension_cls": "tuneloop.generation.vllm.worker.StagingExtension",
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "tensor_parallel_size": options.tensor_parallel,
        "pipeline_parallel_size": options.pipeline_parallel,
    }
    cache_gib = options.kv_cache_gib
    if current_platform.is_cpu():
        arguments |= {
            # bfloat16 is emulated, and four times slower; most quantized kernels know no float32.
            "dtype": "float32" if shapes.read_quantization(options.model) is None else "bfloat16",
            "enforce_eager": True,
            "max_num_batched_tokens": CPU_SCHEDULED_TOKENS,
        }
        cache_gib = cache_gib or CPU_CACHE / GIB
        if options.tensor_parallel * options.pipeline_parallel == 1:
            # The engine's process computes too. vLLM's default, a worker process of its own, costs
            # a third import of vLLM at start, and two messages at each step.
            arguments["distributed_executor_backend"] = IN_PROCESS
    else:
        arguments |= {
            "max_num_seqs": options.max_sequences,
            "max_num_batched_tokens": SCHEDULED_TOKENS,
        }
    if cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(cache_gib * 2**30)
    if options.weights_kind is WeightsKind.LORA:
        arguments |= {
            "enable_lora": True,
            "max_loras": options.max_adapters,
            "max_cpu_loras": options.max_adapters,
            "max_lora_rank": next(rank for rank in LORA_RANKS if rank >= options.max_lora_rank),
        }
    return AsyncEngineArgs(**arguments)
