"""Prompts to versions: generation over gRPC, the reward consumer and the learner, on one bus.

A user writes `reward(prompts, completions, **columns)`; everything between a prompts file and the
next version is real but the network to NATS.
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from support.engine_helpers import Versions, make_engine
from support.learner_events import make_edit, make_ranking
from support.learner_parts import Parts
from support.waiting import until

from tuneloop.generation.completions import Completions
from tuneloop.generation.prompts import Tokenization
from tuneloop.generation.rollout_publisher import RolloutPublisher
from tuneloop.generation.servicer import GenerationServicer
from tuneloop.generation.swap.hot_swap import HotSwap, SwapOptions
from tuneloop.learner.app.learner import make_prompt_sampler
from tuneloop.learner.batching.batcher import PolicyBatcher
from tuneloop.learner.clients.generation import GenerationClient
from tuneloop.learner.data.tokenize import EditTokenizer
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.queue import prompts as held_out
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.reports import evaluations
from tuneloop.learner.ledger.schema import rollouts
from tuneloop.learner.monitoring.reference_fill import ReferenceFill
from tuneloop.learner.prompts.prompt_sets import load_prompts
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.policies import WeightsKind
from tuneloop.reward.consumer import RolloutConsumer
from tuneloop.reward.scorers.functions import FunctionScorer
from tuneloop.reward.scoring import Scoring
from tuneloop.rpc.server import Server
from tuneloop.v1 import generation_pb2_grpc

seen: list[dict[str, list[Any]]] = []


def reward(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
    """Longer is better, the more so as the prompt's row says."""
    seen.append({"prompts": prompts, **columns})
    bonus = [weight or 0 for weight in columns.get("bonus", [0] * len(prompts))]
    return [len(text) / 10 + more for text, more in zip(completions, bonus, strict=True)]


@pytest.fixture
async def parts(tiny_policy: Path, tmp_path: Path) -> AsyncIterator[Parts]:
    """A learner with GRPO, beside a generation service and a reward service."""
    (tmp_path / "prompts.jsonl").write_text(
        '{"prompt": "tell me a story", "bonus": 1}\n{"prompt": "yes or no"}\n'
    )
    (tmp_path / "eval.jsonl").write_text('{"prompt": "what is the capital of France?"}\n')
    options = {
        "model": tiny_policy,
        "policy_gradient": "grpo",
        "samples_per_prompt": 4,
        "prompt_max_tokens": 8,
        "prompts": tmp_path / "prompts.jsonl",
        "eval_prompts": tmp_path / "eval.jsonl",
        "learning_rate": 1e-3,
        "threads": 1,
    }
    parts = Parts(folder=tmp_path)
    engine = make_engine("transformers", tiny_policy, WeightsKind.LORA)
    limits = await engine.start()
    publisher = RolloutPublisher(parts.bus, buffer_size=64)
    publisher.start()
    swap = SwapOptions(
        policy="tuneloop",
        replica="r1",
        base_model=tiny_policy,
        max_live_versions=2,
        max_lora_rank=16,
    )
    versions = Versions(tmp_path / "generation", tiny_policy)
    completions = Completions(
        engine=engine,
        limits=limits,
        tokenization=Tokenization(tiny_policy),
        hot_swap=HotSwap(engine, versions.store, swap, publisher.publish_activation),
        publisher=publisher,
        max_concurrent=16,
    )
    server = Server(host="127.0.0.1", port=0, drain_seconds=0.1)
    server.add(
        generation_pb2_grpc.add_GenerationServiceServicer_to_server,
        GenerationServicer(completions, base_model="tiny"),
    )
    port = await server.start()
    await server.set_serving(True)
    options["generation_address"] = f"127.0.0.1:{port}"
    known = parts.settings.model_dump(exclude_unset=True)
    parts.settings = LearnerSettings(**{**known, **options})
    parts.training_run.trainer = PolicyTrainer(
        tiny_policy, parts.settings.trainer(), base_model="tiny"
    )
    parts.batches = PolicyBatcher(
        parts.database, parts.settings, edit_tokens=EditTokenizer(tiny_policy), clock=parts.clock
    )
    with ThreadPoolExecutor(1) as executor:
        scorer = FunctionScorer(name="reward", weight=1.0, function=reward)
        consumer = RolloutConsumer(
            bus=parts.bus,
            scoring=Scoring([scorer]),
            executor=executor,
            batch_size=8,
            batch_wait_seconds=0.01,
        )
        scoring = asyncio.create_task(consumer.run())
        yield parts
        consumer.stop()
        await scoring
    await server.stop()
    await publisher.stop(0.1)
    await engine.stop()


async def test_a_prompts_file_and_a_reward_function_make_a_version(parts: Parts) -> None:
    seen.clear()
    prompts = load_prompts(parts.settings)
    held_out.hold_out(parts.database, (row.asked.token_ids for row in prompts.evaluation))
    prompt_sampler = make_prompt_sampler(parts.settings, parts.database, prompts, parts.loop)
    assert prompt_sampler is not None
    assert isinstance(prompt_sampler._generation, GenerationClient)
    asking = asyncio.create_task(prompt_sampler.run())
    async with parts.taking_in():
        await until(lambda: evaluations.evaluate(parts.database, 0) is not None, 60)
        await until(lambda: ready.counts(parts.database, "grpo").ready >= 16, 60)
        # A user's edit and ranking of the same rollouts join the step.
        with parts.database.read() as connection:
            query = select(rollouts.c.completion_id).where(rollouts.c.source == "prompts")
            first = sorted(connection.execute(query).scalars())[:2]
        edited = make_edit("e1", first[0], "the capital", second=1)
        ranked = make_ranking("k1", first[0], f"{first[0].partition('.')[0]}.3", second=2)
        recorder.record_feedback(parts.database, [(edited, 1), (ranked, 2)], parts.clock())
        parts.clock.now += 10
        assert await parts.turn()
        parts.loop.pause(True)
        parts.clock.now += parts.settings.publish_every_seconds
        await parts.turn()
    asking.cancel()
    figures = parts.loop.last_metrics["policy"]
    assert {"grpo_loss", "dpo_loss", "sft_loss"} <= figures.keys()
    manifest = parts.store.manifest("tuneloop", 1)
    assert manifest.algorithms == ("dpo", "grpo", "sft")
    assert manifest.data.samples["grpo"] == 8
    # The file's columns reached the function, beside what is known of every completion.
    told = {
        p: b
        for call in seen
        if "bonus" in call
        for p, b in zip(call["prompts"], call["bonus"], strict=True)
    }
    assert told["tell me a story"] == 1
    ReferenceFill(parts.database, parts.training_run.trainer).fill_missing()
    judged = evaluations.evaluate(parts.database, 0)
    assert judged is not None
    assert (judged.prompts, judged.scored) == (1, 1)
    # Version 0 is the reference itself.
    assert judged.kl == pytest.approx(0.0, abs=1e-4)
