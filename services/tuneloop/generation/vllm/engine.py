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
from collections.abc import AsyncGenerator
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
from tuneloop.generation.tool_calls import ToolFormat
from tuneloop.generation.vllm.environment import prepare_environment, read_through
from tuneloop.generation.vllm.requests import (
    finish_reason,
    first_line,
    sampling_params,
    top_candidates,
)
from tuneloop.gpus.memory import SCHEDULED_SEQUENCES, SCHEDULED_TOKENS
from tuneloop.policies import WeightsKind
from tuneloop.reaper import Reaper
from tuneloop.rollouts import PolicyVersionSpan
from tuneloop.weights import shapes

logger = logging.getLogger("tuneloop.generation")
MAX_LOGPROBS = 20
HEALTH_INTERVAL = 0.5
"""Seconds between checks that the engine's processes are alive."""
STAGING_INTERVAL = 0.05
"""Seconds between checks whether new weights are loaded."""
STOP_SECONDS = 1.0
"""How long the engine's processes get to exit."""
CPU_CACHE_GIB = 1.0
CPU_SCHEDULED_TOKENS = 256
"""Tokens in one pass on a CPU. A long prompt stops all streams for the time of a pass: seconds with
vLLM's 2,048, two cores and a model of 135 million parameters."""
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

    async def start(self) -> EngineLimits:
        """Load the base model (version 0) and be ready."""
        prepare_environment(self.options.threads)
        self.reaper = Reaper(descendants=True)
        started = time.monotonic()
        # In a thread, including the import: a signal to stop must not wait for it.
        self.llm = await asyncio.to_thread(start_llm, self.options)
        await self.llm.update_weight_version("0")
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
            tokens_input(list(request.prompt_token_ids)),
            parameters,
            request.request_id,
            lora_request=self.adapter(request.adapter),
        )
        counts: dict[int, int] = {}
        try:
            async for output in stream:
                for completion in output.outputs:
                    counts[completion.index] = counts.get(completion.index, 0) + len(
                        completion.token_ids
                    )
                    yield self.convert(completion, request, counts[completion.index])
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
        """Return one of vLLM's tool parsers."""
        from tuneloop.generation.vllm.tools import VllmToolFormat

        return VllmToolFormat(name, self.llm.get_tokenizer())

    def adapter(self, number: int) -> Any:
        """Return the adapter to sample with; None for the base model and for full weights."""
        if self.weights_kind is WeightsKind.FULL or number == 0:
            return None
        adapter = self.adapters.get(number)
        if adapter is None:
            raise Unavailable(f"adapter {number} is not loaded", retry_after=1.0)
        return adapter

    def convert(self, completion: Any, request: EngineRequest, tokens: int) -> EngineOutput:
        """Convert one of vLLM's outputs; `tokens` is how many the completion has so far."""
        token_ids = tuple(completion.token_ids)
        positions = completion.logprobs or []
        return EngineOutput(
            index=completion.index,
            text=completion.text,
            token_ids=token_ids,
            logprobs=tuple(
                position[token].logprob
                for position, token in zip(positions, token_ids, strict=True)
            ),
            top_logprobs=tuple(
                top_candidates(position, request.sampling.top_logprobs) for position in positions
            )
            if request.sampling.top_logprobs is not None
            else (),
            finish_reason=finish_reason(completion.finish_reason),
            policy_version_spans=self.spans(completion, request, tokens),
        )

    def spans(
        self, completion: Any, request: EngineRequest, tokens: int
    ) -> tuple[PolicyVersionSpan, ...]:
        """Return which version sampled which tokens; empty before the end."""
        if completion.finish_reason is None or tokens == 0:
            return ()
        if self.weights_kind is WeightsKind.LORA:
            version = request.policy_version
            return (PolicyVersionSpan(policy_version=version, start=0, end=tokens),)
        return tuple(
            PolicyVersionSpan(policy_version=int(span.version), start=span.start, end=span.end)
            for span in completion.weight_versions or ()
        )

    async def load_adapter(self, adapter: int, folder: Path) -> None:
        """Load an adapter beside the others while decoding goes on."""
        from vllm.lora.request import LoRARequest

        request = LoRARequest(
            lora_name=f"adapter-{adapter}", lora_int_id=adapter, lora_path=str(folder)
        )
        try:
            loaded = await self.llm.add_lora(request)
        except Exception as error:
            self.raise_if_dead(error)
            raise WeightsRefused(f"adapter {adapter}: {first_line(error)}") from error
        if not loaded:
            raise WeightsRefused(f"adapter {adapter}: vLLM did not load the adapter")
        self.adapters[adapter] = request

    async def drop_adapter(self, adapter: int) -> None:
        """Unload an adapter that no request holds."""
        if self.adapters.pop(adapter, None) is None:
            return
        try:
            await self.llm.remove_lora(adapter)
        except Exception as error:
            self.raise_if_dead(error)
            raise Unavailable(f"adapter {adapter} was not dropped: {error}") from error

    async def load_full_weights(self, policy_version: int, folder: Path) -> float:
        """Replace the weights in place; return the seconds in which nothing was sampled.

        Requests in flight keep their tokens; their key-value cache is computed again with the new
        weights (`clear_cache`), so that every later log-prob is by those weights.
        """
        async with self.weights_lock:
            await asyncio.to_thread(shapes.check_full, self.options.model, folder)
            await asyncio.to_thread(read_through, folder)
            await self.stage_weights(policy_version, folder)
            paused = time.monotonic()
            await self.llm.pause_generation(mode="keep", clear_cache=True)
            # Not resumed after a failure: it would sample from mixed weights.
            await self.commit_weights(policy_version, folder)
            await self.llm.resume_generation()
            return time.monotonic() - paused

    async def stage_weights(self, policy_version: int, folder: Path) -> None:
        """Load what can be loaded while decoding continues; a failure changes nothing."""
        try:
            await self.llm.collective_rpc("stage_weights", args=(str(folder),))
            while not all(await self.llm.collective_rpc("staged")):
                await asyncio.sleep(STAGING_INTERVAL)
        except Exception as error:
            self.raise_if_dead(error)
            raise WeightsRefused(f"version {policy_version}: {first_line(error)}") from error

    async def commit_weights(self, policy_version: int, folder: Path) -> None:
        """Put checked files into the paused engine; after a failure it cannot continue."""
        try:
            await self.llm.collective_rpc("commit_weights", args=(str(folder),))
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

    return AsyncLLM.from_engine_args(engine_arguments(options))


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
        "worker_extension_cls": "tuneloop.generation.vllm.worker.ReloadExtension",
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
        cache_gib = cache_gib or CPU_CACHE_GIB
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
