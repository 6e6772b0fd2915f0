"""A candidate is examined by a real engine over gRPC, next to the stable version."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
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
from tuneloop.policies import ReleaseState, ServedPolicy, WeightsKind, WeightsReference
from tuneloop.rpc.channel import connect
from tuneloop.rpc.server import Server
from tuneloop.v1 import generation_pb2_grpc, reward_pb2_grpc


class Asked(GenerationClient):
    """The generation service, and which versions it was asked for."""

    versions: list[int]
    fails_after: int | None = None
    lacks = 0
    """How many answers come from a replica that does not hold the version."""

    async def answer(self, question: PromptRequest, seconds: float) -> SampledAnswer:
        if question.policy_version and self.lacks:
            self.lacks -= 1
            raise NotFound("version 1 is not loaded")
        if self.fails_after is not None and len(self.versions) >= self.fails_after:
            raise Unavailable("generation restarts")
        self.versions.append(question.policy_version or 0)
        return await super().answer(question, seconds)


@dataclass
class Bench:
    """An examiner before a generation and a reward service."""

    evaluator: CandidateEvaluator
    asked: Asked
    generation: Server
    hot_swap: HotSwap
    versions: Versions
    reward: FakeReward
    published: dict[int, Version] = field(default_factory=dict)

    def publish(self, number: int, folder: Path) -> Version:
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
    trainer = PolicyTrainer(tiny_policy, settings.trainer(), base_model="tiny")

    async def reference_logprobs(sequences: list[TokenSequence]) -> list[tuple[float, ...]]:
        return trainer.reference_logprobs(sequences)

    asked = Asked(connect(f"127.0.0.1:{generation.port}"), "tuneloop")
    asked.versions = []
    evaluator = CandidateEvaluator(
        generation=asked,
        scoring=RewardClient(connect(f"127.0.0.1:{reward.port}")),
        store=versions.store,
        distance=BaseDistance(tiny_policy, WeightsKind.LORA),
        questions=questions,
        reference_logprobs=reference_logprobs,  # type: ignore[arg-type]
        local_answers=None,
        settings=settings.gate,
    )
    yield Bench(
        evaluator=evaluator,
        asked=asked,
        generation=generation,
        hot_swap=hot_swap,
        versions=versions,
        reward=scorers,
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
    assert bench.asked.versions.count(0) == bench.asked.versions.count(1) == count
    assert (numbers["candidate"]["answers"], numbers["stable_version"]) == (count, 0)
    # Nothing was scored, so the KL is estimated: a random adapter is far away, whichever way.
    assert (numbers["kl"], numbers["stable"]["kl"]) == (None, None)
    assert abs(numbers["candidate"]["kl"]) > 0.1
    assert numbers["change"] > 0.1
    assert numbers["reward"]["pairs"] == len(numbers["rewards"]["candidate"])
    assert numbers["rewards"]["scorers"] == ["length"]

    again = (await bench.evaluator.examine(two, one)).numbers

    # What the first one answered as a candidate is what it answers as the stable version.
    assert again["stable"] == numbers["candidate"]
    assert bench.asked.versions.count(1) == bench.asked.versions.count(2) == count


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
    assert bench.asked.versions.count(2) == len(BUILT_IN)
    assert verdict.numbers["same_answers"]
    assert "the same answers as version 1" in verdict.reason


async def test_a_replica_that_lacks_the_candidate_is_told_to_load_it(
    bench: Bench, tiny_policy: Path, tmp_path: Path
) -> None:
    candidate = bench.publish(1, make_adapter(tiny_policy, tmp_path / "one", seed=1))
    bench.asked.lacks = 3
    numbers = (await bench.evaluator.examine(candidate, None)).numbers
    assert numbers["candidate"]["answers"] == len(BUILT_IN)


async def test_what_was_answered_before_a_restart_is_not_asked_again(
    bench: Bench, tiny_policy: Path, tmp_path: Path
) -> None:
    candidate = bench.publish(1, make_adapter(tiny_policy, tmp_path / "one", seed=1))
    bench.asked.fails_after = 5
    with pytest.raises(Unavailable):
        await bench.evaluator.examine(candidate, None)
    bench.asked.fails_after = None
    await bench.evaluator.examine(candidate, None)
    assert len(bench.asked.versions) == 2 * len(BUILT_IN)


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
    assert bench.asked.versions == []
    assert verdict.numbers["items"]["own"]["anchor"][:3] == [0.0, 0.2, 0.4]
    bench.evaluator._evidence = lambda candidate, stable: 2.0 * candidate + stable
    kept.save(1, {"own": base}, 0.75)
    verdict = await bench.evaluator.examine(candidate, None)
    assert "rose from 0, of version 0, to 0.75 nats per token, by more than 0.6:" in verdict.reason
    assert bench.asked.versions == []
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


async def test_few_prompts_are_asked_at_once_while_users_wait(bench: Bench) -> None:
    async def asked_at_once(users: int) -> int:
        running = most = 0

        async def answer(question: PromptRequest, seconds: float) -> SampledAnswer:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.3)
            running -= 1
            return SampledAnswer(text="a", token_ids=(5,), logprobs=(-0.1,))

        async def policy() -> ServedPolicy:
            return ServedPolicy(
                name="tuneloop",
                policy_version=0,
                weights_kind=WeightsKind.LORA,
                leases={0: users + running},
            )

        bench.asked.answer = answer  # type: ignore[method-assign]
        bench.asked.policy = policy  # type: ignore[method-assign]
        await bench.evaluator._asker.ask(users, None)
        return most

    at_once = [await asked_at_once(users) for users in (0, 3, 12)]
    assert at_once == [len(BUILT_IN), 1, 3]


async def test_weights_that_generation_refuses_fail(
    bench: Bench, tiny_policy: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tiny_policy, tmp_path / "one", seed=1, rank=32)
    verdict = await bench.evaluator.examine(bench.publish(1, folder), None)
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
    for version in range(8, 12):
        local_answers.save_answers(version)
    assert local_answers.of_version(7) is None
    # Versions after the first were checked against it, in other passes: they round differently.
    for version in (8, 11):
        again = local_answers.of_version(version)
        assert again is not None
        assert [one.token_ids for one in again] == [one.token_ids for one in answers]


async def test_full_weights_are_examined_by_what_they_answered_in_the_trainer(
    bench: Bench, tiny_policy: Path, tmp_path: Path
) -> None:
    class Taken:
        def of_version(self, version: int) -> list[SampledAnswer] | None:
            answer = SampledAnswer(text="aaaa", token_ids=(5, 5, 5, 5), logprobs=(-0.1,) * 4)
            return [answer] * len(BUILT_IN) if version == 1 else None

    bench.evaluator._local_answers = Taken()
    candidate = bench.publish(1, make_adapter(tiny_policy, tmp_path / "one", seed=1))
    numbers = (await bench.evaluator.examine(candidate, None)).numbers
    assert numbers["rewards"]["candidate"] == [4.0] * numbers["reward"]["pairs"]
    assert set(bench.asked.versions) == {0}
    unknown = bench.publish(2, make_adapter(tiny_policy, tmp_path / "two", seed=2))
    with pytest.raises(NotFound, match="not loaded"):
        await bench.evaluator.examine(unknown, None)
