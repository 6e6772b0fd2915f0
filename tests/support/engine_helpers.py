"""Adapters, full weights and teacher-forced log-probs for tests of engines."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tuneloop.generation.engine import Engine, EngineOutput, EngineRequest
from tuneloop.policies import WeightsKind, WeightsReference
from tuneloop.rollouts import SamplingParameters
from tuneloop.weights.filesystem import FilesystemStore
from tuneloop.weights.manifest import Manifest, ManifestData
from tuneloop.weights.shapes import base_model_sha256
from tuneloop.weights.signing import Signer, Verifier, write_key_pair


def make_adapter(base: Path, folder: Path, *, seed: int, rank: int = 8) -> Path:
    """Write a random PEFT adapter that changes the model's output a lot."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    return folder


def make_full_weights(base: Path, folder: Path, *, seed: int) -> Path:
    """Write other weights for the same model."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    model.save_pretrained(folder)
    return folder


def teacher_forced(
    base: Path,
    adapter: Path | None,
    prompt: Sequence[int],
    completion: Sequence[int],
    temperature: float,
) -> list[float]:
    """Log-prob of each completion token at `temperature`, from one forward pass."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1]
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    return logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()


def make_engine(name: str, model: Path, kind: WeightsKind) -> Engine:
    """An engine on the tiny model, small enough to share a machine with other tests."""
    if name == "transformers":
        from tuneloop.generation.transformers.engine import TransformersEngine

        return TransformersEngine(model, kind, None, threads=1)
    from tuneloop.generation.vllm.engine import VllmEngine, VllmOptions

    options = VllmOptions(
        model=model,
        weights_kind=kind,
        max_model_len=None,
        max_lora_rank=16,
        max_adapters=4,
        kv_cache_gib=0.1,
        gpu_memory_utilization=0.9,
        threads=1,
    )
    return VllmEngine(options)


class Completed:
    """All outputs of one completion, joined."""

    def __init__(self, outputs: Sequence[EngineOutput]) -> None:
        self.outputs = outputs
        self.text = "".join(o.text for o in outputs)
        self.token_ids = [t for o in outputs for t in o.token_ids]
        self.logprobs = [p for o in outputs for p in o.logprobs]
        self.finish_reason = outputs[-1].finish_reason
        self.spans = outputs[-1].policy_version_spans


async def complete(
    engine: Engine,
    prompt: Sequence[int],
    *,
    version: int = 0,
    request_id: str = "r",
    with_tools: bool = False,
    **sampling: object,
) -> list[Completed]:
    """Run one request to its end; its completions by index."""
    parameters = {"temperature": 1.0, "max_tokens": 16} | sampling
    request = EngineRequest(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParameters(**parameters),  # type: ignore[arg-type]
        policy_version=version,
        adapter=version,
        with_tools=with_tools,
    )
    outputs: dict[int, list[EngineOutput]] = {}
    async for output in engine.generate(request):
        outputs.setdefault(output.index, []).append(output)
    return [Completed(outputs[i]) for i in sorted(outputs)]


class Versions:
    """A real weight store with keys, and versions published into it."""

    def __init__(self, root: Path, base: Path) -> None:
        private, self.verify_key_file = write_key_pair(root / "keys")
        self.base = base
        self.uri = str(root / "store")
        self.cache_dir = root / "cache"
        self.store = FilesystemStore(
            self.uri,
            signer=Signer.from_file(private),
            verifier=Verifier.from_file(self.verify_key_file),
            cache_dir=self.cache_dir,
        )

    def publish(
        self,
        version: int,
        folder: Path,
        *,
        kind: WeightsKind = WeightsKind.LORA,
        policy: str = "tuneloop",
        base: Path | None = None,
        oldest_feedback_time: datetime | None = None,
    ) -> WeightsReference:
        manifest = Manifest(
            policy=policy,
            version=version,
            parent=version - 1,
            kind=kind,
            base_model="tiny",
            base_model_sha256=base_model_sha256(base or self.base),
            data=ManifestData(oldest_feedback_time=oldest_feedback_time),
            files=(),
            created_time=datetime.now(UTC),
        )
        return self.store.publish(folder, manifest)
