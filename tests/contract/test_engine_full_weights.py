"""Full weights replaced in place while requests run; the same tests over both engines."""

import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from safetensors.torch import load_file, save_file
from support.engine_helpers import (
    Completed,
    complete,
    make_engine,
    make_full_weights,
    teacher_forced,
)

from tuneloop.errors import WeightsRefused
from tuneloop.generation.engine import Engine, EngineOutput, EngineRequest
from tuneloop.policies import WeightsKind
from tuneloop.rollouts import PolicyVersionSpan, SamplingParameters
from tuneloop.weights.files import sha256_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
PROMPT = (1, 300, 310, 320)


@pytest.fixture(scope="module")
def folders(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("full")
    made = {v: make_full_weights(tiny_policy, root / str(v), seed=v) for v in (1, 2)}
    return {0: tiny_policy} | made


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=[
        "transformers",
        pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow]),
        pytest.param("vllm from main memory", marks=[pytest.mark.vllm, pytest.mark.slow]),
    ],
)
async def engine(request: pytest.FixtureRequest, tiny_policy: Path) -> AsyncIterator[Engine]:
    name, *from_main_memory = request.param.split(" ", 1)
    engine: Any = make_engine(name, tiny_policy, WeightsKind.FULL)
    await engine.start()
    if from_main_memory:
        # As on a GPU.
        engine.loads_twin = False
    yield engine
    await engine.stop()


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.glob("*.safetensors")}


async def assert_samples_from(engine: Engine, folder: Path) -> None:
    (answer,) = await complete(engine, PROMPT, max_tokens=8, request_id="which")
    expected = teacher_forced(folder, None, PROMPT, answer.token_ids, 1.0)
    assert answer.logprobs == pytest.approx(expected, abs=2e-3)


async def complete_over_swap(
    engine: Engine, prompt: Sequence[int], version: int, folder: Path, after: int, tokens: int
) -> tuple[Completed, float]:
    """Load a version after so many outputs of a completion; return that, and the pause."""
    request = EngineRequest(
        request_id="over-a-swap",
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParameters(temperature=1.0, max_tokens=tokens, logit_bias={2: -100.0}),
        policy_version=version - 1,
    )
    outputs: list[EngineOutput] = []
    pause = 0.0
    async for output in engine.generate(request):
        outputs.append(output)
        if len(outputs) == after:
            pause = await engine.load_full_weights(version, folder, hashes(folder))
    return Completed(outputs), pause


async def test_a_swap_mid_stream_continues_on_the_new_weights_and_says_so(
    engine: Engine, folders: dict[int, Path]
) -> None:
    await assert_samples_from(engine, folders[0])
    answer, pause = await complete_over_swap(engine, PROMPT, 1, folders[1], after=10, tokens=200)
    assert pause > 0
    assert len(answer.token_ids) == 200
    old, new = answer.spans
    assert old == PolicyVersionSpan(policy_version=0, start=0, end=old.end)
    assert new == PolicyVersionSpan(policy_version=1, start=old.end, end=200)
    by_old = teacher_forced(folders[0], None, PROMPT, answer.token_ids, 1.0)
    by_new = teacher_forced(folders[1], None, PROMPT, answer.token_ids, 1.0)
    assert answer.logprobs[: old.end] == pytest.approx(by_old[: old.end], abs=5e-3)
    # The bias on one token of 384 shifts the others by little.
    assert answer.logprobs[old.end :] == pytest.approx(by_new[old.end :], abs=2e-2)
    assert answer.logprobs[old.end :] != pytest.approx(by_old[old.end :], abs=0.2)
    await assert_samples_from(engine, folders[1])


async def test_files_that_do_not_fit_are_refused_and_the_weights_stay(
    engine: Engine, folders: dict[int, Path], tmp_path: Path
) -> None:
    await engine.load_full_weights(2, folders[2], hashes(folders[2]))
    bad = Path(shutil.copytree(folders[1], tmp_path / "bad"))
    tensors = load_file(bad / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsRefused):
        await engine.load_full_weights(3, bad, hashes(bad))
    await assert_samples_from(engine, folders[2])
    (answer,) = await complete(engine, PROMPT)
    assert {span.policy_version for span in answer.spans} == {2}


async def test_files_with_another_hash_are_refused_and_the_weights_stay(
    engine: Engine, folders: dict[int, Path]
) -> None:
    await engine.load_full_weights(2, folders[2], hashes(folders[2]))
    with pytest.raises(WeightsRefused, match="SHA-256"):
        await engine.load_full_weights(3, folders[1], hashes(folders[2]))
    await assert_samples_from(engine, folders[2])


async def test_the_base_model_can_be_put_back(engine: Engine, folders: dict[int, Path]) -> None:
    await engine.load_full_weights(0, folders[0], {})
    await assert_samples_from(engine, folders[0])


async def test_a_kept_cache_is_used_by_running_requests_only(
    engine: Any, folders: dict[int, Path]
) -> None:
    if engine.name != "vllm":
        pytest.skip("only vLLM keeps the cache")
    await engine.load_full_weights(1, folders[1], {})
    # More than a block, so that there is something to find in the cache.
    prompt = tuple(300 + number % 50 for number in range(160))
    engine.keep_kv_cache = True
    try:
        await complete(engine, prompt, max_tokens=8, request_id="first")
        running, _ = await complete_over_swap(engine, prompt, 2, folders[2], after=5, tokens=80)
        (later,) = await complete(engine, prompt, max_tokens=8, request_id="later")
    finally:
        engine.keep_kv_cache = False
    assert [span.policy_version for span in running.spans] == [1, 2]
    last = running.spans[1].start
    by_new = teacher_forced(folders[2], None, prompt, running.token_ids, 1.0)
    # The prompt's keys and values are still those of version 1.
    assert running.logprobs[last:] != pytest.approx(by_new[last:], abs=5e-2)
    expected = teacher_forced(folders[2], None, prompt, later.token_ids, 1.0)
    assert later.logprobs == pytest.approx(expected, abs=5e-3)
