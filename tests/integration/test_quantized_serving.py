"""A quantized base is served, an adapter is trained on it and swapped in, and the gap is small.

In FP8 of compressed-tensors, the format that vLLM computes with on any CPU. It rounds activations
too, which the learner does not.
"""

import importlib.util
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.engine_helpers import Completed, complete, make_engine
from support.policy_samples import SampleMaker
from support.quantized_models import quantize

from tuneloop.doctor.model_files import check_model
from tuneloop.errors import SettingsError
from tuneloop.generation.engine import Engine
from tuneloop.generation.service import make_engine as engine_of_settings
from tuneloop.generation.settings import GenerationSettings
from tuneloop.learner.monitoring.logprob_gap import mean_gap
from tuneloop.learner.samples import TokenSequence
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.policies import WeightsKind
from tuneloop.weights.shapes import check_adapter

PROMPT = (1, 50, 51, 52, 53)


@pytest.fixture(scope="module")
def base(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(tiny_policy, tmp_path_factory.mktemp("quantized") / "base", "compressed-fp8")


@pytest.fixture(
    params=["transformers", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow])]
)
async def engine(request: pytest.FixtureRequest, base: Path) -> AsyncIterator[Engine]:
    engine = make_engine(request.param, base, WeightsKind.LORA)
    await engine.start()
    yield engine
    await engine.stop()


def gap_of(trainer: PolicyTrainer, answers: list[Completed]) -> float:
    sampled = [
        TokenSequence(
            prompt_token_ids=PROMPT,
            completion_token_ids=tuple(answer.token_ids),
            generation_logprobs=tuple(answer.logprobs),
            temperature=1.0,
        )
        for answer in answers
    ]
    gap = mean_gap(sampled, trainer.logprobs(sampled))
    assert gap is not None
    return gap


async def test_it_is_served_trained_and_swapped_in(
    engine: Engine, base: Path, tmp_path: Path
) -> None:
    trainer = PolicyTrainer(base, TrainerSettings(learning_rate=1e-2, threads=1))
    most = 1e-4 if engine.name == "transformers" else 0.03
    of_base = await complete(engine, PROMPT, n=8, max_tokens=32)
    assert gap_of(trainer, of_base) < most

    maker = SampleMaker(0)
    for _ in range(3):
        trainer.step({"kto": maker.thumbs(8), "sft": maker.demonstrations(4)})
    assert gap_of(trainer, of_base) > 0.02
    trainer.save_weights(tmp_path)
    check_adapter(base, tmp_path, max_rank=16)
    await engine.load_adapter(1, tmp_path)
    of_version = await complete(engine, PROMPT, version=1, n=8, max_tokens=32)
    assert gap_of(trainer, of_version) < most


def describe(base: Path, **found: object) -> None:
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = found
    (base / "config.json").write_text(json.dumps(config))


def test_full_weights_are_refused_before_anything_is_loaded(base: Path) -> None:
    settings = GenerationSettings(model=base, weights_kind=WeightsKind.FULL)
    with pytest.raises(SettingsError, match=r"compressed-tensors, 8 bits.*set the weights to lora"):
        engine_of_settings(settings)


def test_what_is_missing_for_bitsandbytes_is_named(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_model("model", str(base), tmp_path).state == "ok"
    packed = shutil.copytree(base, tmp_path / "packed")
    describe(packed, quant_method="bitsandbytes", load_in_4bit=True)
    find_spec = importlib.util.find_spec
    missing = ("bitsandbytes", "vllm_bnb_plugin")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find_spec(name)
    )
    with pytest.raises(SettingsError, match="plugin for: pip install bitsandbytes vllm-bnb-plugin"):
        engine_of_settings(GenerationSettings(model=packed, engine="auto"))
    found = check_model("model", str(packed), tmp_path)
    assert (found.state, found.remedy) == ("problem", "pip install bitsandbytes vllm-bnb-plugin")
    describe(packed, quant_method="vptq")
    assert "adapters cannot be trained on" in check_model("model", str(packed), tmp_path).found
