"""A hot swap over a real store and an engine that only remembers."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

from support.engine_helpers import Versions

from tuneloop.generation.engine import EngineLimits, EngineOutput, EngineRequest
from tuneloop.generation.swap.hot_swap import HotSwap, SwapOptions
from tuneloop.policies import Activation, WeightsKind, WeightsReference


class FakeEngine:
    """Remembers what it was told to load and drop."""

    name = "fake"

    def __init__(self, weights_kind: WeightsKind) -> None:
        self.weights_kind = weights_kind
        self.adapters: set[int] = set()
        self.full = 0
        self.hashes: dict[str, str] = {}
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def start(self) -> EngineLimits:
        return EngineLimits(max_model_len=512, vocab_size=384, max_logprobs=20)

    async def stop(self) -> None: ...

    async def wait_for_failure(self) -> str:
        return await asyncio.Future()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
        raise NotImplementedError
        yield

    async def load_adapter(self, adapter: int, folder: Path) -> float:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        assert (folder / "adapter_model.safetensors").exists()
        self.adapters.add(adapter)
        return 0.001

    async def drop_adapter(self, adapter: int) -> None:
        self.adapters.remove(adapter)

    async def load_full_weights(
        self, policy_version: int, folder: Path, sha256: Mapping[str, str]
    ) -> float:
        await self.gate.wait()
        self.full, self.hashes = policy_version, dict(sha256)
        return 0.5


class Bench:
    """A hot swap with a real store."""

    def __init__(self, base: Path, root: Path, kind: WeightsKind = WeightsKind.LORA) -> None:
        self.versions = Versions(root, base)
        self.engine = FakeEngine(kind)
        self.activations: list[Activation] = []
        options = SwapOptions(
            policy="tuneloop",
            replica="r1",
            base_model=base,
            max_live_versions=2,
            max_lora_rank=16,
        )
        self.hot_swap = HotSwap(self.engine, self.versions.store, options, self.activations.append)


def base_reference() -> WeightsReference:
    return WeightsReference(policy="tuneloop", policy_version=0, uri="", manifest_sha256="")
