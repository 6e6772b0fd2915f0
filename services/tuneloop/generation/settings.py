"""Settings of the generation process, read from TUNELOOP_GENERATION_*."""

import socket
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from tuneloop.bus.settings import BusSettings
from tuneloop.policies import WeightsKind
from tuneloop.ports import GRPC_PORTS, METRICS_PORTS
from tuneloop.rpc.settings import RpcServerSettings
from tuneloop.settings import Name, Port
from tuneloop.weights.settings import WeightsSettings


class GenerationSettings(BusSettings, RpcServerSettings, WeightsSettings):
    """What to serve, where, and how much of the machine to use for it."""

    model_config = SettingsConfigDict(
        env_prefix="TUNELOOP_GENERATION_", env_nested_delimiter="__", extra="forbid"
    )

    port: Port = Field(GRPC_PORTS["generation"], description="gRPC port, 1 to 65535")
    metrics_port: Port = Field(
        METRICS_PORTS["generation"], description="port of /metrics, 1 to 65535"
    )
    policy: Name = Field("tuneloop", description="name of the policy: letters, digits, '_' and '-'")
    replica: str = Field(
        default_factory=socket.gethostname, description="name of this replica in events"
    )
    role: Literal["stable", "canary"] = Field(
        "stable",
        description="stable, or canary: serve the canary's version to all callers of this replica. "
        "For full weights, of which a replica holds one version; adapters need one role only",
    )
    model: Path = Field(description="folder of the base model: config, safetensors, tokenizer")
    base_model_name: str = Field("", description="name of the base model; empty: the folder's")
    engine: Literal["auto", "vllm", "transformers"] = Field(
        "auto", description="auto (vllm where it is installed), vllm or transformers"
    )
    tool_parser: str = Field(
        "auto",
        description="format in which the model calls functions: auto (as its chat template tells), "
        "hermes, openai (gpt-oss), or with vLLM any that its --tool-call-parser takes; none or "
        "empty: requests with tools are refused",
    )
    reasoning_parser: str = Field(
        "auto",
        description="format in which the model thinks before it answers: auto (as its chat "
        "template and tokens tell), qwen3, deepseek_r1, mistral, seed_oss, openai_gptoss, or with "
        "vLLM any that its --reasoning-parser takes; none: thoughts are part of the answer",
    )
    weights_kind: WeightsKind = Field(WeightsKind.LORA, description="lora or full")
    max_model_len: int | None = Field(
        None, ge=16, description="tokens in prompt and completion; empty: the model's own limit"
    )
    max_lora_rank: int = Field(32, ge=1, le=512, description="largest rank of an adapter, 1 to 512")
    max_live_versions: int = Field(
        4, ge=1, le=64, description="adapters kept in memory for instant roll-back, 1 to 64"
    )
    max_concurrent_requests: int = Field(
        256, ge=1, description="completions at once; more are refused with RESOURCE_EXHAUSTED"
    )
    threads: int = Field(0, ge=0, description="CPU threads to compute with; 0: all")
    kv_cache_gib: float | None = Field(
        None,
        gt=0,
        description="GiB of key-value cache; empty: 1 on a CPU, and what GPU_MEMORY_UTILIZATION "
        "leaves on a GPU",
    )
    keep_kv_cache: bool = Field(
        False,
        description="full weights, vLLM: running requests keep the keys and values of the old "
        "weights over a swap. Their next token comes sooner, but its log-prob is of no version",
    )
    tensor_parallel: int = Field(
        1, ge=1, le=64, description="GPUs that vLLM spreads the model over, 1 to 64"
    )
    pipeline_parallel: int = Field(
        1, ge=1, le=64, description="stages of GPUs that vLLM divides the layers into, 1 to 64"
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="share of the GPU's memory, above 0 to 1"
    )
    rollout_buffer_size: int = Field(
        10_000, ge=1, description="events kept while the bus cannot be reached"
    )
    drain_seconds: float = Field(
        3.0, ge=0, description="seconds that running requests get to end when the process stops"
    )
