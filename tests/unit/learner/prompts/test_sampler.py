"""The learner's own prompts: read, asked while users leave room, evaluated by version."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from support.learner_events import make_rollout, make_score, make_thumb
from support.learner_parts import Clock, Parts

from tuneloop.errors import InvalidRequest, NotFound, SettingsError, Unavailable
from tuneloop.learner.clients.generation import PromptRequest
from tuneloop.learner.data.prompt_rows import PromptRow
from tuneloop.learner.data.tokenize import PromptTokens
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.queue import prompts, ready
from tuneloop.learner.ledger.reports import evaluations
from tuneloop.learner.ledger.rows import prompt_sha256
from tuneloop.learner.monitoring import reference_fill
from tuneloop.learner.prompts.prompt_sets import Prompts, load_prompts, shuffled
from tuneloop.learner.prompts.sampler import PromptSampler, PromptSamplerOptions
from tuneloop.learner.service import convert
from tuneloop.learner.settings import LearnerSettings
from tuneloop.policies import ServedPolicy, WeightsKind
from tuneloop.rollouts import RolloutSource, SamplingParameters


def prompt(number: int) -> PromptRow:
    asked = PromptTokens(
        text=f"q{number}", messages=(), rendered=f"q{number}", token_ids=(1, number)
    )
    return PromptRow(place=f"line {number}", asked=asked, columns={"answer": number})


class FakeGeneration:
    """Answers at once, into the ledger, as if the rollouts had come over the bus."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.asked: list[PromptRequest] = []
        self.serving = 0
        self.leases = 0
        self.loaded = {0}
        self.away = False
        self.scores = True

    async def policy(self) -> ServedPolicy:
        if self.away:
            raise Unavailable("nobody listens")
        return ServedPolicy(
            name="tuneloop",
            policy_version=self.serving,
            weights_kind=WeightsKind.LORA,
            leases=dict.fromkeys(sorted(self.loaded), self.leases),
        )

    async def ask(self, question: PromptRequest) -> None:
        self.asked.append(question)
        version = self.serving if question.policy_version is None else question.policy_version
        if version not in self.loaded:
            raise NotFound(f"version {version} is not loaded")
        names = [
            question.completion_id + (f".{n}" if n else "") for n in range(question.sampling.n)
        ]
        rollouts = [
            make_rollout(
                name,
                group_id=question.completion_id,
                user=question.source.value,
                version=version,
                prompt=question.row.asked.token_ids,
                n=question.sampling.n,
                source=question.source,
            )
            for name in names
        ]
        recorder.record_rollouts(self.parts.database, rollouts, 0.0)
        scores = [make_score(name, float(len(self.asked))) for name in names]
        recorder.record_scores(self.parts.database, scores if self.scores else [], 0.0)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    monkeypatch.setattr("tuneloop.learner.prompts.sampler.POLL_SECONDS", 0.001)
    monkeypatch.setattr("tuneloop.learner.prompts.sampler.RETRY_SECONDS", 0.001)
    return Parts(folder=tmp_path)


def prompt_sampler(
    parts: Parts, generation: FakeGeneration, clock: Clock | None = None, **lists: Any
) -> PromptSampler:
    return PromptSampler(
        generation=generation,
        database=parts.database,
        prompts=Prompts(**{"training": (), "evaluation": (), **lists}),
        options=PromptSamplerOptions(
            sampling=SamplingParameters(temperature=0.7, n=2, max_tokens=16),
            seed=0,
            in_flight=3,
            concurrency=2,
            max_staleness=4,
        ),
        learning=lambda: not parts.loop.paused,
        clock=clock or Clock(),
    )


async def turns(asker: PromptSampler, count: int = 30) -> None:
    for _ in range(count):
        await asker._turn()
        await asyncio.sleep(0)


def sources(generation: FakeGeneration) -> list[str]:
    return [question.source.value for question in generation.asked]


async def test_no_more_is_asked_than_may_wait_to_be_learned_from(parts: Parts) -> None:
    generation = FakeGeneration(parts)
    asker = prompt_sampler(parts, generation, training=[prompt(n) for n in range(4)])
    await turns(asker)
    assert sources(generation) == ["prompts"] * 3
    assert len({question.row.place for question in generation.asked}) == 3
    assert prompts.outstanding(parts.database, 0, {0}) == 3
    # Once one was learned from, the next is asked: each before any comes again.
    first = generation.asked[0].completion_id
    ready.refuse(
        parts.database,
        [
            ready.Refusal(sample_id=sample_id, objective="ppo", reason="done with")
            for sample_id in (first, f"{first}.1")
        ],
    )
    await turns(asker)
    assert len({question.row.place for question in generation.asked}) == 4


async def test_an_idle_scorer_is_not_fed_for_ever(parts: Parts) -> None:
    generation = FakeGeneration(parts)
    generation.scores = False
    asker = prompt_sampler(parts, generation, training=[prompt(n) for n in range(4)])
    await turns(asker)
    assert len(generation.asked) == 3
    generation.serving = 1
    generation.loaded.add(1)
    await turns(asker)
    assert len(generation.asked) == 6


async def test_users_come_first_and_a_pause_asks_nothing(parts: Parts) -> None:
    generation = FakeGeneration(parts)
    asker = prompt_sampler(parts, generation, training=[prompt(0)], evaluation=[prompt(9)])
    generation.leases = 1
    await turns(asker)
    assert generation.asked == []
    generation.leases = 0
    parts.loop.pause(True)
    await turns(asker)
    # A version is judged all the same.
    assert sources(generation) == ["eval"]
    parts.loop.pause(False)
    await turns(asker)
    assert sources(generation) == ["eval", "prompts", "prompts", "prompts"]


async def test_every_version_answers_each_eval_prompt_once(parts: Parts) -> None:
    generation = FakeGeneration(parts)
    lists = {"evaluation": [prompt(7), prompt(8)]}
    asker = prompt_sampler(parts, generation, **lists)
    await turns(asker)
    generation.serving, generation.loaded = 2, {0, 1, 2}
    await turns(asker)
    asked = [(q.policy_version, q.row.place, q.sampling.seed) for q in generation.asked]
    # The newest first; the same luck for every version.
    assert asked == [(version, f"line {7 + n}", n) for version in (0, 2, 1) for n in (0, 1)]
    assert all(question.sampling.n == 1 for question in generation.asked)
    # After a restart nothing is asked again.
    await turns(prompt_sampler(parts, generation, **lists))
    assert len(generation.asked) == 6


async def test_a_version_that_is_gone_is_passed_over(parts: Parts) -> None:
    generation = FakeGeneration(parts)
    generation.serving = 3
    asker = prompt_sampler(parts, generation, evaluation=[prompt(7), prompt(8)])
    await turns(asker)
    # Version 3 could not be leased; version 0 could.
    assert {q.policy_version for q in generation.asked[-2:]} == {0}
    assert len(generation.asked) <= 4


async def test_a_question_that_fails_at_once_is_not_asked_for_at_once(parts: Parts) -> None:
    class Refusing(FakeGeneration):
        async def ask(self, question: PromptRequest) -> None:
            self.asked.append(question)
            raise InvalidRequest("the prompt has 900 tokens")

    clock = Clock()
    generation = Refusing(parts)
    asker = prompt_sampler(parts, generation, evaluation=[prompt(7)], clock=clock)
    await turns(asker)
    assert len(generation.asked) == 1
    clock.now += 61
    await turns(asker)
    assert len(generation.asked) == 2


async def test_generation_that_is_away_is_asked_again(parts: Parts) -> None:
    generation = FakeGeneration(parts)
    generation.away = True
    asker = prompt_sampler(parts, generation, training=[prompt(0)])
    task = asyncio.create_task(asker.run())
    await asyncio.sleep(0.02)
    assert generation.asked == []
    generation.away = False
    async with asyncio.timeout(5):
        while not generation.asked:
            await asyncio.sleep(0.005)
    task.cancel()


def test_held_out_prompts_are_never_learned_from(parts: Parts) -> None:
    ledger = parts.database
    recorder.record_rollouts(
        ledger, [make_rollout("mine", prompt=(1, 9)), make_rollout("free", prompt=(1, 8))], 0.0
    )
    thumbs = [(make_thumb("f1", "mine"), 1), (make_thumb("f2", "free"), 2)]
    recorder.record_feedback(ledger, thumbs, 0.0)
    recorder.record_scores(ledger, [make_score("mine"), make_score("free")], 0.0)
    prompts.hold_out(ledger, [(1, 9)])
    for objective, left in (("kto", "f2"), ("reward_model", "f2"), ("ppo", "free")):
        assert [s.sample_id for s in ready.take_samples(ledger, objective, 9)[0]] == [left]
        assert ready.counts(ledger, objective) == ready.SampleCounts(ready=1, waiting=0, used=0)
    prompts.hold_out(ledger, [])
    assert len(ready.take_samples(ledger, "kto", 9)[0]) == 2


def test_a_version_is_judged_by_its_answers(parts: Parts) -> None:
    ledger = parts.database
    assert evaluations.evaluate(ledger, 1) is None
    answers = [
        make_rollout(
            f"e{n}", version=1, prompt=(1, n), completion=(7,) * (n + 2), source=RolloutSource.EVAL
        )
        for n in range(3)
    ]
    recorder.record_rollouts(ledger, answers, 0.0)
    recorder.record_scores(ledger, [make_score("e0", 1.0), make_score("e1", 2.0)], 0.0)
    later = make_score("e1", 4.0, reward_model_version=3)
    recorder.record_scores(ledger, [later, make_score("e2", None)], 0.0)
    assert ready.take_samples(ledger, "ppo", 9) == ([], [])
    found = evaluations.evaluate(ledger, 1)
    assert found is not None
    assert (found.prompts, found.scored, found.kl) == (3, 2, None)
    assert found.reward is not None
    assert found.reward.value == 2.5
    # Two rewards, 1 and 4: variance 4.5 of either, 2.25 of the mean.
    assert found.reward.margin == pytest.approx(1.96 * 1.5)
    assert found.length.value == 3.0
    assert found.reward_model_version == 3
    reference_fill.ReferenceFill(ledger, parts.trainer).fill_missing()
    found = evaluations.evaluate(ledger, 1)
    assert found is not None
    # Sampled at -0.5 a token, -0.25 by the reference.
    assert found.kl == pytest.approx(-0.25)
    wire = convert.evaluation_to_proto(found)
    assert wire is not None
    assert math.isclose(wire.mean_reward, 2.5)
    assert evaluations.newest_evaluated(ledger) == 1


def test_every_round_of_prompts_has_an_order_of_its_own_and_goes_on_after_a_restart() -> None:
    order = shuffled(5, 0, 0)
    first = [next(order) for _ in range(15)]
    assert [position for position, _ in first] == list(range(15))
    rounds = [[index for _, index in first[n : n + 5]] for n in (0, 5, 10)]
    assert all(sorted(r) == list(range(5)) for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1
    again = shuffled(5, 0, 7)
    assert [next(again) for _ in range(8)] == first[7:]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(parts: Parts, model: Path, **options: Any) -> LearnerSettings:
    return parts.settings.model_copy(update={"model": model, "prompt_max_tokens": 16, **options})


def test_prompts_are_read_as_the_service_is_asked(parts: Parts, tiny_policy: Path) -> None:
    training = write(
        parts.folder / "prompts.jsonl",
        {"prompt": "hello", "answer": 3},
        {"prompt": "yes or no"},
    )
    asked = [{"role": "user", "content": "hello"}]
    eval_prompts = write(parts.folder / "eval.jsonl", {"messages": asked}, {"messages": asked})
    found = load_prompts(settings(parts, tiny_policy, prompts=training, eval_prompts=eval_prompts))
    # The same question twice is one, and held out of training in whatever form it comes.
    assert len(found.evaluation) == 1
    assert [row.asked.text for row in found.training] == ["yes or no"]
    assert found.training[0].asked.messages[0].content == "yes or no"
    assert found.training[0].columns == {"answer": None}
    assert len(prompt_sha256(found.training[0].asked.token_ids)) == 64


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": ""}], "prompts.jsonl, line 1: prompt is empty"),
        ([{"question": "?"}], "prompt"),
        ([{"prompt": "hello " * 600}], "line 1: .* more than the 512"),
        ([], "the file is empty"),
    ],
)
def test_a_wrong_prompts_file_stops_the_start_and_names_the_row(
    parts: Parts, tiny_policy: Path, rows: list[dict[str, Any]], message: str
) -> None:
    path = write(parts.folder / "prompts.jsonl", *rows)
    with pytest.raises(SettingsError, match=message):
        load_prompts(settings(parts, tiny_policy, prompts=path))
