"""The gap between generation's and the learner's log-probs: when it is measured, and of what."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from support.learner_events import make_rollout
from support.learner_parts import Clock, Parts

from tuneloop.learner.guards.settings import GuardSettings
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.reports import alarm_figures
from tuneloop.learner.ledger.reports.answers import sampled_plainly
from tuneloop.learner.monitoring.alarm_monitor import AlarmMonitor
from tuneloop.learner.monitoring.logprob_gap import EVERY_SECONDS, LogprobGap, mean_gap
from tuneloop.learner.samples import TokenSequence
from tuneloop.rollouts import Rollout, SamplingParameters


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(folder=tmp_path)


def answers(count: int, version: int = 0, name: str = "a") -> list[Rollout]:
    """Answers of 20 tokens, each with a log-prob of -0.5."""
    return [
        make_rollout(f"{name}{version}-{n}", version=version, completion=range(20))
        for n in range(count)
    ]


def shown() -> float | None:
    return REGISTRY.get_sample_value("tuneloop_learner_logprob_gap")


def test_the_mean_is_over_tokens_that_the_learner_can_score() -> None:
    sequence = TokenSequence(
        prompt_token_ids=(1,),
        completion_token_ids=(1, 2, 3),
        generation_logprobs=(-1.0, -2.0, -0.5),
        temperature=1.0,
    )
    assert mean_gap([sequence], [(-1.5, -1.75, -0.5)]) == pytest.approx((0.5 + 0.25) / 3)
    assert mean_gap([sequence, sequence], [(), (-1.0, -2.0, -0.8)]) == pytest.approx(0.1)
    assert mean_gap([sequence], [()]) is None


def test_it_is_measured_once_a_version_and_raises_the_alarm(parts: Parts) -> None:
    clock = Clock()
    gap = LogprobGap(parts.database, parts.training_run, clock=clock)
    first = shown()
    assert first is not None
    assert math.isnan(first)
    recorder.record_rollouts(parts.database, answers(12), 0.0)
    gap.measure()
    assert parts.trainer.measured == []  # 240 tokens are too few
    recorder.record_rollouts(parts.database, answers(8, name="b"), 0.0)
    gap.measure()
    assert parts.trainer.measured == []  # and it does not look all the time
    clock.now += 60
    gap.measure()
    assert sum(len(s.completion_token_ids) for s in parts.trainer.measured) == 260
    assert shown() == 0.25  # |-0.75 - -0.5|
    watch = AlarmMonitor(parts.database, GuardSettings(), clock=parts.clock)
    watch.check_alarms()
    assert [(a.name, a.numbers["logprob_gap"]) for a in watch.raised] == [("logprob_gap", 0.25)]
    clock.now += EVERY_SECONDS
    gap.measure()
    assert len(parts.trainer.measured) == 13

    parts.training_run.mark_published(1)
    recorder.record_rollouts(parts.database, answers(13, version=1), 0.0)
    parts.training_run.unpublished_steps = 1
    gap.measure()
    assert len(parts.trainer.measured) == 13  # the weights are not version 1 any more
    parts.training_run.unpublished_steps = 0
    gap.measure()
    assert len(parts.trainer.measured) == 26


def test_it_is_known_after_a_restart(parts: Parts) -> None:
    alarm_figures.set_logprob_gap(parts.database, 0.031)
    LogprobGap(parts.database, parts.training_run)
    assert shown() == alarm_figures.logprob_gap(parts.database) == 0.031


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParameters(temperature=0.0),
        SamplingParameters(top_p=0.9),
        SamplingParameters(top_k=20),
        SamplingParameters(frequency_penalty=0.5),
        SamplingParameters(presence_penalty=0.5),
        SamplingParameters(logit_bias={3: 1.0}),
        SamplingParameters(json_schema="{}"),
        SamplingParameters(structural_tag="{}"),
    ],
)
def test_answers_whose_logprobs_are_not_the_policys_alone_are_left_out(
    parts: Parts, sampling: SamplingParameters
) -> None:
    filtered = [replace(rollout, sampling=sampling) for rollout in answers(2, name="filtered")]
    recorder.record_rollouts(parts.database, [*answers(1), *filtered, *answers(3, version=1)], 0.0)
    [found] = sampled_plainly(parts.database, 0, tokens=100)
    assert found.generation_logprobs == (-0.5,) * 20
    assert found.temperature == 0.7
