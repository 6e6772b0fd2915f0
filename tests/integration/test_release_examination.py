"""A candidate is examined by a real engine over gRPC, next to the stable version."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from engine_helpers import Versions, make_adapter, make_engine
from gateway_fakes import FakeReward, serve

from tuneloop.bus.memory import MemoryBus
from tuneloop.errors import NotFound, Unavailable
from tuneloop.generation.completions import Completions
from tuneloop.generation.hot_swap import HotSwap, SwapOptions
from tuneloop.generation.rollout_publisher import RolloutPublisher
from tuneloop.generation.servicer import GenerationServicer
from tuneloop.generation.tokenization import Tokenization
from tuneloop.learner.asking import Generation, Question
from tuneloop.learner.ledger.versions import Version
from tuneloop.learner.prompts import Prompts
from tuneloop.learner.release.answers import Answer
from tuneloop.learner.release.change import Distance
from tuneloop.learner.release.examination import Examiner
from tuneloop.learner.release.questions import BUILT_IN, load_questions
from tuneloop.learner.release.scoring import Scoring
from tuneloop.learner.samples import TokenSequence
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.training import PolicyTraining
from tuneloop.policies import ReleaseState, WeightsKind, WeightsReference
from tuneloop.rpc.channel import connect
from tuneloop.rpc.server import Server
from tuneloop.v1 import generation_pb2_grpc, reward_pb2_grpc


class Asked(Generation):
    """The generation service, and which versions it was asked for."""

    versions: list[int]
    lacks = 0
    """How many answers come from a replica that does not hold the version."""

    async def answer(self, question: Question, seconds: float) -> Answer:
        if question.policy_version and self.lacks:
            self.lacks -= 1
            raise NotFound("version 1 is not loaded")
        self.versions.append(question.policy_version or 0)
        return await super().answer(question, seconds)


@dataclass
class Bench:
    """An examiner before a generation and a reward service."""

    examiner: Examiner
    asked: Asked
    generation: Server
    hot_swap: HotSwap
    versions: Versions
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
    reward = await serve(reward_pb2_grpc.add_RewardServiceServicer_to_server, FakeReward())
    settings = LearnerSettings(
        model=tiny_policy,
        weights_uri=versions.uri,
        signing_key_file=tmp_path,
        verify_key_file=tmp_path,
        data_dir=tmp_path,
        threads=1,
        gate={"max_tokens": 8},
    )
    questions = load_questions(settings, Prompts(training=(), evaluation=()))
    assert questions is not None
    trainer = PolicyTraining(tiny_policy, "tiny", settings.trainer())

    async def reference_logprobs(sequences: list[TokenSequence]) -> list[tuple[float, ...]]:
        return trainer.reference_logprobs(sequences)

    asked = Asked(connect(f"127.0.0.1:{generation.port}"), "tuneloop")
    asked.versions = []
    examiner = Examiner(
        generation=asked,
        scoring=Scoring(connect(f"127.0.0.1:{reward.port}")),
        store=versions.store,
        distance=Distance(tiny_policy, WeightsKind.LORA),
        questions=questions,
        reference_logprobs=reference_logprobs,  # type: ignore[arg-type]
        kind=WeightsKind.LORA,
        settings=settings.gate,
    )
    yield Bench(
        examiner=examiner, asked=asked, generation=generation, hot_swap=hot_swap, versions=versions
    )
    await generation.stop()
    await reward.stop()
    await engine.stop()


async def test_a_candidate_answers_beside_the_stable_version_and_serves_nobody(
    bench: Bench, tiny_policy: Path, tmp_path: Path
) -> None:
    one = bench.publish(1, make_adapter(tiny_policy, tmp_path / "one", seed=1))
    two = bench.publish(2, make_adapter(tiny_policy, tmp_path / "two", seed=2))

    numbers = (await bench.examiner.examine(one, None)).numbers

    assert bench.hot_swap.serving == 0
    count = len(BUILT_IN)
    assert bench.asked.versions.count(0) == bench.asked.versions.count(1) == count
    assert (numbers["candidate"]["answers"], numbers["stable_version"]) == (count, 0)
    # The base model is its own reference; a random adapter is far from it, whichever way.
    assert numbers["stable"]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert abs(numbers["candidate"]["kl"]) > 0.1
    assert numbers["change"] > 0.1
    assert numbers["reward"]["pairs"] == len(numbers["rewards"]["candidate"])
    assert numbers["rewards"]["scorers"] == ["length"]

    again = (await bench.examiner.examine(two, one)).numbers

    # What the first one answered as a candidate is what it answers as the stable version.
    assert again["stable"] == numbers["candidate"]
    assert bench.asked.versions.count(1) == bench.asked.versions.count(2) == count


async def test_a_replica_that_lacks_the_candidate_is_told_to_load_it(
    bench: Bench, tiny_policy: Path, tmp_path: Path
) -> None:
    candidate = bench.publish(1, make_adapter(tiny_policy, tmp_path / "one", seed=1))
    bench.asked.lacks = 3
    numbers = (await bench.examiner.examine(candidate, None)).numbers
    assert numbers["candidate"]["answers"] == len(BUILT_IN)


async def test_weights_that_generation_refuses_fail(
    bench: Bench, tiny_policy: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tiny_policy, tmp_path / "one", seed=1, rank=32)
    verdict = await bench.examiner.examine(bench.publish(1, folder), None)
    assert not verdict.passed
    assert "its weights are refused" in verdict.reason


async def test_without_generation_nothing_is_said_of_a_candidate(
    bench: Bench, tiny_policy: Path, tmp_path: Path
) -> None:
    candidate = bench.publish(1, make_adapter(tiny_policy, tmp_path / "one", seed=1))
    await bench.generation.stop()
    with pytest.raises(Unavailable):
        await bench.examiner.examine(candidate, None)
