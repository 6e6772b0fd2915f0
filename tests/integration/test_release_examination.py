"""A candidate is examined by a real engine over gRPC, next to the stable version."""

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.engine_helpers import Versions, complete, make_adapter, make_engine, make_full_weights
from support.gateway_fakes import FakeReward
from support.gateway_stack import serve

from tuneloop.bus.memory import MemoryBus
from tuneloop.errors import NotFound, Unavailable
from tuneloop.generation.completions import Completions
from tuneloop.generation.prompts import Tokenization
from tuneloop.generation.rollout_publisher import RolloutPublisher
from tuneloop.generation.servicer import GenerationServicer
from tuneloop.generation.swap.hot_swap import HotSwap, SwapOptions
from tuneloop.learner.clients.generation import GenerationClient, PromptRequest
from tuneloop.learner.clients.reward import RewardClient
from tuneloop.learner.ledger.accounting.versions import Version
from tuneloop.learner.prompts.prompt_sets import Prompts
from tuneloop.learner.release.gate.evaluator import CandidateEvaluator
from tuneloop.learner.release.gate.local_answers import LocalAnswers
from tuneloop.learner.release.gate.prompts import BUILT_IN, load_gate_prompts
from tuneloop.learner.release.gate.suites import KeptScores
from tuneloop.learner.release.gate.weight_delta import BaseDistance
from tuneloop.learner.samples import SampledAnswer, TokenSequence
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.policies import ReleaseState, WeightsKind, WeightsReference
from tuneloop.rpc.channel import connect
from tuneloop.rpc.server import Server
from tuneloop.v1 import generation_pb2_grpc, reward_pb2_grpc


class Asked(GenerationClient):
    """The generation service, and which versions it was asked for."""

    versions: list[int]
    loaded: list[int]

    async def answer(self, question: PromptRequest, seconds: float) -> SampledAnswer:
        self.versions.append(question.policy_version or 0)
        return await super().answer(question, seconds)

    async def load(self, weights: WeightsReference) -> None:
        await super().load(weights)
        self.loaded.append(weights.policy_version)


@dataclass
class Bench:
    """An examiner before a generation and a reward service."""

    evaluator: CandidateEvaluator
    asked: Asked
    generation: Server
    hot_swap: HotSwap
    versions: Versions
    reward: FakeReward
    answers: LocalAnswers
    trainer: PolicyTrainer

    def publish(self, number: int, folder: Path, *, answered: bool = True) -> Version:
        """Publish a version, as after training: it answers while it is saved."""
        if answered:
            self.trainer.load_weights(folder)
            self.answers.save_answers(number)
        return as_version(self.versions.publish(number, folder))


def as_version(reference: WeightsReference) -> Version:
    return Version(
        model="policy",
        version=reference.policy_version,
        policy="tuneloop",
        parent=0,
        state=ReleaseState.CANDIDATE,
        stage="released",
        first_step=0,
        last_step=1,
        manifest="{}",
        uri=reference.uri,
        manifest_sha256=reference.manifest_sha256,
        created_time=datetime.now(UTC),
        activated_time=None,
    )


@pytest.fixture
async def bench(tiny_policy: Path, tmp_path: Path) -> AsyncIterator[Bench]:
    versions = Versions(tmp_path, tiny_policy)
    engine = make_engine("transformers", tiny_policy, WeightsKind.LORA)
    limits = await engine.start()
    publisher = RolloutPublisher(MemoryBus(), buffer_size=64)
    swap = SwapOptions(
        policy="tuneloop",
        replica="r1",
        base_model=tiny_policy,
        max_live_versions=2,
        max_lora_rank=16,
    )
    hot_swap = HotSwap(engine, versions.store, swap, publisher.publish_activation)
    completions = Completions(
        engine=engine,
        limits=limits,
        tokenization=Tokenization(tiny_policy),
        hot_swap=hot_swap,
        publisher=publisher,
        max_concurrent=16,
    )
    generation = await serve(
        generation_pb2_grpc.add_GenerationServiceServicer_to_server,
        GenerationServicer(completions, base_model="tiny"),
    )
    scorers = FakeReward()
    reward = await serve(reward_pb2_grpc.add_RewardServiceServicer_to_server, scorers)
    settings = LearnerSettings(
        model=tiny_policy,
        weights_uri=versions.uri,
        signing_key_file=tmp_path,
        verify_key_file=tmp_path,
        data_dir=tmp_path,
        threads=1,
        # Random adapters are far from the base model.
        gate={"max_tokens": 8, "max_change": 1000},
    )
    questions = load_gate_prompts(settings, Prompts(training=(), evaluation=()))
    assert questions is not None
    trainer = PolicyTrainer(
        tiny_policy, replace(settings.trainer(), lora_rank=8, lora_alpha=16), base_model="tiny"
    )

    async def reference_logprobs(sequences: list[TokenSequence]) -> list[tuple[float, ...]]:
        return trainer.reference_logprobs(sequences)

    asked = Asked(connect(f"127.0.0.1:{generation.port}"), "tuneloop")
    asked.versions, asked.loaded = [], []
    prompts = [row.asked.token_ids for row in questions.rows]
    answers = LocalAnswers(tmp_path / "rehearsals", trainer, prompts, settings.gate.max_tokens)
    answers.save_base_answers()
    evaluator = CandidateEvaluator(
        generation=asked,
        scoring=RewardClient(connect(f"127.0.0.1:{reward.port}")),
        store=versions.store,
        distance=BaseDistance(tiny_policy, WeightsKind.LORA),
        questions=questions,
        reference_logprobs=reference_logprobs,  # type: ignore[arg-type]
        local_answers=answers,
        settings=settings.gate,
    )
    yield Bench(
        evaluator=evaluator,
        asked=asked,
        generation=generation,
        hot_swap=hot_swap,
        versions=versions,
        reward=scorers,
        answers=answers,
        trainer=trainer,
    )
    await generation.stop()
    await reward.stop()
    await engine.stop()


async def test_a_candidate_answers_beside_the_stable_version_and_serves_nobody(
    bench: Bench, tiny_policy: Path, tmp_path: Path
) -> None:
    one = bench.publish(1, make_adapter(tiny_policy, tmp_path / "one", seed=1))
    two = bench.publish(2, make_adapter(tiny_policy, tmp_path / "two", seed=2))

    numbers = (await bench.evaluator.examine(one, None)).numbers

    assert bench.hot_swap.serving == 0
    count = len(BUILT_IN)
    assert (bench.asked.versions, bench.asked.loaded) == ([], [1])
    assert (numbers["candidate"]["answers"], numbers["stable_version"]) == (count, 0)
    # Nothing was scored, so the KL is estimated: a random adapter is far away, whichever way.
    assert (numbers["kl"], numbers["stable"]["kl"]) == (None, None)
    assert abs(numbers["candidate"]["kl"]) > 0.1
    assert numbers["change"] > 0.1
    assert numbers["reward"]["pairs"] == len(numbers["rewards"]["candidate"])
    assert numbers["rewards"]["scorers"] == ["length"]

    again = (await bench.evaluator.examine(two, one)).numbers

    # What the first one answered as a candidate is what it answers as the stable version.
    assert again["rewards"]["stable"] == numbers["rewards"]["candidate"]
    assert (bench.asked.versions, bench.asked.loaded) == ([], [1, 2])


async def test_the_same_answers_are_not_scored(
    bench: Bench, tiny_policy: Path, tmp_path: Path
) -> None:
    one = bench.publish(1, make_adapter(tiny_policy, tmp_path / "one", seed=1))
    two = bench.publish(2, make_adapter(tiny_policy, tmp_path / "two", seed=1))
    first = await bench.evaluator.examine(one, None)
    scored = len(bench.reward.requests)
    assert scored == len(BUILT_IN)
    assert not first.numbers["same_answers"]

    verdict = await bench.evaluator.examine(two, one)

    assert len(bench.reward.requests) == scored
    assert verdict.numbers["same_answers"]
    assert "the same answers as version 1" in verdict.reason


async def test_a_stable_version_that_was_not_asked_answers_through_generation_once(
    bench: Bench, tiny_policy: Path, tmp_path: Path
) -> None:
    # Another tuneloop published it, or it was asked other prompts.
    one = make_adapter(tiny_policy, tmp_path / "one", seed=1)
    stable = bench.publish(1, one, answered=False)
    two = bench.publish(2, make_adapter(tiny_policy, tmp_path / "two", seed=2))
    with pytest.raises(NotFound):
        await bench.evaluator.examine(two, stable)
    await bench.asked.load(stable.reference)
    numbers = (await bench.evaluator.examine(two, stable)).numbers
    assert bench.asked.versions == [1] * (1 + len(BUILT_IN))
    bench.publish(3, one)
    asked, answered = (bench.answers.of_version(version) for version in (1, 3))
    assert asked is not None
    assert answered is not None
    assert [a.token_ids for a in asked] == [a.token_ids for a in answered]
    assert (await bench.evaluator.examine(two, stable)).numbers == numbers
    assert len(bench.asked.versions) == 1 + len(BUILT_IN)


async def test_a_candidate_that_did_not_answer_is_held(
    bench: Bench, tiny_policy: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tiny_policy, tmp_path / "one", seed=1)
    candidate = bench.publish(1, folder, answered=False)
    with pytest.raises(Unavailable, match="version 1 did not answer the gate's prompts"):
        await bench.evaluator.examine(candidate, None)


async def test_answers_to_other_prompts_are_not_compared(bench: Bench, tmp_path: Path) -> None:
    folder, trainer = tmp_path / "rehearsals", bench.trainer
    first = LocalAnswers(folder, trainer, [(1, 20), (1, 30)], 8)
    first.save_base_answers()
    assert first.of_version(0) is not None
    assert LocalAnswers(folder, trainer, [(1, 20), (1, 31)], 8).of_version(0) is None
    assert LocalAnswers(folder, trainer, [(1, 20), (1, 30)], 9).of_version(0) is None
    # As saved before what was asked was saved with them.
    (folder / "00000001.json").write_text('[{"text": "a", "token_ids": [5], "logprobs": [-0.1]}]')
    assert first.of_version(1) is None
    for version in range(2, 22):
        first.save_answers(version)
    kept = sorted(int(path.stem) for path in folder.glob("*.json"))
    assert kept == [0, *range(6, 22)]


async def test_a_candidate_that_fails_its_suites_is_not_sampled(
    bench: Bench, tiny_policy: Path, tmp_path: Path
) -> None:
    kept = KeptScores(tmp_path / "suites")
    bench.evaluator._suites = kept
    candidate = bench.publish(1, make_adapter(tiny_policy, tmp_path / "one", seed=1))
    with pytest.raises(Unavailable, match="version 1 was not scored on the suites"):
        await bench.evaluator.examine(candidate, None)
    base = {f"item {i}": i % 5 / 5 for i in range(40)}
    kept.save(0, {"own": base})
    kept.save(1, {"own": {item: value - 0.1 for item, value in base.items()}})
    verdict = await bench.evaluator.examine(candidate, None)
    assert not verdict.passed
    assert verdict.reason.startswith("own fell by 0.1 from version 0, the stable one")
    assert bench.asked.loaded == []
    assert verdict.numbers["items"]["own"]["anchor"][:3] == [0.0, 0.2, 0.4]
    bench.evaluator._evidence = lambda candidate, stable: 2.0 * candidate + stable
    kept.save(1, {"own": base}, 0.75)
    verdict = await bench.evaluator.examine(candidate, None)
    assert "rose from 0, of version 0, to 0.75 nats per token, by more than 0.6:" in verdict.reason
    assert bench.asked.loaded == []
    kept.save(1, {"own": base})
    numbers = (await bench.evaluator.examine(candidate, None)).numbers
    assert numbers["suites"][0]["anchor"]["difference"] == 0.0
    assert (numbers["kl"], numbers["stable_kl"]) == (None, 0.0)
    assert numbers["candidate"]["answers"] == len(BUILT_IN)
    # What the trainer measured is exact: the answers need no estimate beside it.
    other = bench.publish(2, make_adapter(tiny_policy, tmp_path / "two", seed=2))
    kept.save(2, {"own": base}, 0.25)
    numbers = (await bench.evaluator.examine(other, None)).numbers
    assert (numbers["kl"], numbers["candidate"]["kl"]) == (0.25, None)


async def test_weights_that_generation_refuses_fail(
    bench: Bench, tiny_policy: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tiny_policy, tmp_path / "one", seed=1, rank=32)
    candidate = bench.publish(1, folder, answered=False)
    bench.answers.keep(1, bench.answers.of_version(0) or ())
    verdict = await bench.evaluator.examine(candidate, None)
    assert not verdict.passed
    assert "its weights are refused" in verdict.reason


async def test_without_generation_nothing_is_said_of_a_candidate(
    bench: Bench, tiny_policy: Path, tmp_path: Path
) -> None:
    candidate = bench.publish(1, make_adapter(tiny_policy, tmp_path / "one", seed=1))
    await bench.generation.stop()
    with pytest.raises(Unavailable):
        await bench.evaluator.examine(candidate, None)


def with_tokenizer(folder: Path, base: Path) -> Path:
    for file in base.glob("*token*"):
        shutil.copy(file, folder)
    return folder


async def test_full_weights_answer_in_the_trainer_as_they_will_in_the_engine(
    tiny_policy: Path, tmp_path: Path
) -> None:
    folder = with_tokenizer(make_full_weights(tiny_policy, tmp_path / "other", seed=3), tiny_policy)
    settings = TrainerSettings(kind=WeightsKind.FULL, threads=1)
    trainer = PolicyTrainer(folder, settings, base_model="tiny")
    prompts = [(1, 20, 21), (1, 30, 31, 32, 33)]
    local_answers = LocalAnswers(tmp_path / "rehearsals", trainer, prompts, 8)

    local_answers.save_answers(7)

    answers = local_answers.of_version(7)
    assert answers is not None
    assert local_answers.of_version(8) is None
    engine = make_engine("transformers", folder, WeightsKind.FULL)
    await engine.start()
    for prompt, answer in zip(prompts, answers, strict=True):
        (served,) = await complete(engine, prompt, temperature=0.0, max_tokens=8)
        assert list(answer.token_ids) == served.token_ids
        assert answer.text == served.text
        assert answer.logprobs == pytest.approx(served.logprobs, abs=1e-4)
    await engine.stop()
    for version in (8, 11):
        local_answers.save_answers(version)
    # Versions after the first were checked against it, in other passes: they round differently.
    for version in (8, 11):
        again = local_answers.of_version(version)
        assert again is not None
        assert [one.token_ids for one in again] == [one.token_ids for one in answers]
