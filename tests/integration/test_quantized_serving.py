"""A quantized base is served, an adapter is trained on it and swapped in, and the gap is small.

In FP8 of compressed-tensors, the format that vLLM computes with on any CPU. It rounds activations
too, which the learner does not.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.engine_helpers import Completed, complete, make_engine
from support.policy_samples import SampleMaker
from support.quantized_models import quantize

from tuneloop.generation.engine import Engine
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
    assert gap_of(trainer, of_base) > 0.1
    trainer.save_weights(tmp_path)
    check_adapter(base, tmp_path, max_rank=16)
    await engine.load_adapter(1, tmp_path)
    of_version = await complete(engine, PROMPT, version=1, n=8, max_tokens=32)
    assert gap_of(trainer, of_version) < most
