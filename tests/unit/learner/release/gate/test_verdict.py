"""The gate's arithmetic, against figures worked out by hand, and each bound it keeps."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tuneloop.learner.release.gate.answers import GateMeasurements, Measures, measure
from tuneloop.learner.release.gate.settings import GateSettings
from tuneloop.learner.release.gate.verdict import judge
from tuneloop.learner.release.gate.weight_delta import BaseDistance
from tuneloop.learner.samples import SampledAnswer
from tuneloop.learner.stats.paired import PairedDifference, paired_difference, t_quantile
from tuneloop.learner.stats.repetition import repetition
from tuneloop.policies import WeightsKind


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 3, 3.18245),
        (0.975, 11, 2.20099),
        (0.95, 10, 1.81246),
        (0.995, 30, 2.75),
    ],
)
def test_quantiles_are_those_of_the_printed_tables(
    probability: float, freedom: int, expected: float
) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-5)


def test_a_comparison_is_the_mean_difference_with_its_t_interval() -> None:
    # Differences 1, 2, 3, 4: mean 2.5, variance 5/3, standard error sqrt(5/12) = 0.645497,
    # times 3.182446 (3 degrees of freedom) = 2.054260.
    found = paired_difference([2.0, 4.0, 6.0, 8.0], [1.0, 2.0, 3.0, 4.0], 0.95)
    assert found is not None
    assert (found.pairs, found.difference) == (4, 2.5)
    assert found.low == pytest.approx(2.5 - 2.054260, abs=1e-6)
    assert found.high == pytest.approx(2.5 + 2.054260, abs=1e-6)
    assert paired_difference([1.0], [2.0], 0.95) is None


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=40))
def test_swapping_the_versions_mirrors_the_interval(pairs: list[tuple[float, float]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    one, other = paired_difference(first, second, 0.9), paired_difference(second, first, 0.9)
    assert one is not None
    assert other is not None
    assert one.low <= one.difference <= one.high
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def answer(*token_ids: int, text: str = "Fine.", logprob: float = -0.5) -> SampledAnswer:
    return SampledAnswer(text=text, token_ids=token_ids, logprobs=(logprob,) * len(token_ids))


def test_repetition_is_the_share_of_4_grams_that_came_before() -> None:
    assert repetition((1, 2, 3)) == 0.0
    assert repetition((1, 2, 3, 4, 5)) == 0.0
    # 1212, 2121, 1212, 2121, 1212: two of five are new.
    assert repetition((1, 2, 1, 2, 1, 2, 1, 2)) == pytest.approx(3 / 5)
    assert repetition((7,) * 13) == pytest.approx(9 / 10)


def test_answers_are_measured() -> None:
    answers = [
        answer(5, 6, 7, 2),
        answer(2, text=" \n"),
        answer(5, 1, 6, 2),
        answer(5, text="Yes<|im_start|>user"),
    ]
    references = [(-1.0,) * 4, (-2.0,), (), (-0.5,)]
    found = measure(answers, references, special_ids={1, 2})
    assert found == Measures(
        answers=4,
        length=10 / 4,
        repetition=0.0,
        empty=1 / 4,
        leaked=2 / 4,  # a token of the template inside, and one spelled out
        kl=(4 * 0.5 + 1.5 + 0.0) / 6,
    )


def test_thoughts_and_answers_are_measured_apart() -> None:
    """A thought of eight tokens repeats three of its five 4-grams; the second never ended."""
    thought = (1, 2, 1, 2, 1, 2, 1, 2)
    answers = [
        replace(answer(*thought, 5, 6, 7, 2), reasoning_tokens=8),
        replace(answer(5, 9, 9, 9, text=""), reasoning_tokens=4),
    ]
    # The template's token 1 is the thought's own.
    found = measure(answers, (), special_ids={1, 2})
    assert found == Measures(
        answers=2,
        length=4 / 2,
        repetition=0.0,
        empty=1 / 2,
        leaked=0.0,
        kl=None,
        thought_length=12 / 2,
        thought_repetition=(3 / 5) / 2,
        cut_thoughts=1 / 2,
    )


FINE = Measures(answers=12, length=20.0, repetition=0.1, empty=0.0, leaked=0.0, kl=0.2)
PASSES = GateMeasurements(
    change=0.05,
    change_norm=3.0,
    stable_version=4,
    candidate=FINE,
    stable=FINE,
    reward=None,
    rewards={},
)


def compared(low: float, high: float) -> PairedDifference:
    return PairedDifference(
        pairs=12, difference=(low + high) / 2, low=low, high=high, confidence=0.95
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"change": 1.01}, "the change is 1.01 of the base weights"),
        ({"change": math.nan}, "the change is nan"),
        ({"candidate": replace(FINE, kl=1.6)}, "KL to the base model is 1.6"),
        ({"candidate": replace(FINE, kl=math.nan)}, "KL to the base model is nan"),
        ({"kl": 1.01}, "KL to the base model is 1.01 nats per token, more than 1"),
        ({"kl": math.nan}, "KL to the base model is nan"),
        ({"candidate": replace(FINE, length=7.9)}, "0.395 times as long"),
        (
            {
                "candidate": replace(FINE, thought_length=26.0),
                "stable": replace(FINE, thought_length=10.0),
            },
            "its thoughts are 2.6 times as long",
        ),
        (
            {"candidate": replace(FINE, thought_repetition=0.2)},
            "repeated 4-grams in thoughts rose from 0.00 to 0.20",
        ),
        ({"candidate": replace(FINE, length=51.0)}, "2.55 times as long"),
        ({"candidate": replace(FINE, repetition=0.26)}, "4-grams rose from 0.10 to 0.26"),
        ({"candidate": replace(FINE, empty=0.17)}, "empty answers rose from 0.00 to 0.17"),
        ({"candidate": replace(FINE, leaked=0.17)}, "chat template rose from 0.00 to 0.17"),
        ({"reward": compared(-0.9, -0.1)}, "mean reward fell by 0.5 (95% interval -0.9 to -0.1)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_broken_bound_fails_a_candidate(changes: dict[str, object], reason: str) -> None:
    verdict = judge(replace(PASSES, **changes), GateSettings())  # type: ignore[arg-type]
    assert not verdict.passed
    assert reason in verdict.reason
    assert ";" not in verdict.reason


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reward": compared(-0.9, 0.1)},
        {"reward": compared(0.1, 0.9)},
        {"candidate": replace(FINE, kl=None)},
        {"candidate": replace(FINE, kl=9.0), "kl": 0.3},
        {"stable": replace(FINE, repetition=0.9), "candidate": replace(FINE, repetition=0.95)},
    ],
    ids=[
        "same",
        "reward_unsure",
        "reward_better",
        "kl_unknown",
        "kl_measured",
        "stable_repeats_too",
    ],
)
def test_what_is_no_worse_passes(changes: dict[str, object]) -> None:
    verdict = judge(replace(PASSES, **changes), GateSettings())  # type: ignore[arg-type]
    assert verdict.passed, verdict.reason
    assert verdict.numbers["candidate"]["length"] == 20.0
    assert verdict.numbers["settings"]["max_kl"] == 1.0
    json.dumps(dict(verdict.numbers))


def test_the_measured_kl_is_judged_before_anything_is_sampled_and_named_in_words() -> None:
    first = replace(PASSES, candidate=None, stable=None, kl=1.2)
    assert not judge(first, GateSettings()).passed
    verdict = judge(replace(PASSES, kl=0.1234), GateSettings())
    assert "KL to the base model 0.123 nats per token" in verdict.reason
    assert verdict.numbers["kl"] == 0.1234


def stepped(before: float, after: float, evidence: float) -> GateMeasurements:
    return replace(PASSES, stable_kl=before, kl=after, evidence=evidence)


def test_the_kl_may_rise_with_the_evidence_since_the_stable_version() -> None:
    settings = GateSettings(max_kl=9.0, max_kl_step=0.25)
    # Half a full step is worth a whole one; two and a half are worth 2.5 · 0.25 = 0.625.
    for before, after, evidence, passes in (
        (0.25, 0.5, 0.5, True),
        (0.25, 0.625, 0.5, False),
        (0.25, 0.625, 2.0, True),
        (0.125, 0.75, 2.5, True),
        (0.125, 0.875, 2.5, False),
        (0.75, 0.125, 1.0, True),
    ):
        assert judge(stepped(before, after, evidence), settings).passed is passes
    verdict = judge(stepped(0.125, 0.875, 2.5), settings)
    assert verdict.reason == (
        "KL to the base model rose from 0.125, of version 4, to 0.875 nats per token, by more than "
        "0.625: 0.25 for a full step of evidence, and it learned from 2.5 since"
    )
    assert (verdict.numbers["stable_kl"], verdict.numbers["evidence"]) == (0.125, 2.5)
    assert not judge(stepped(0.0, 0.31, 1.0), GateSettings()).passed
    # A stable version from before it was measured.
    assert judge(replace(PASSES, kl=0.9), GateSettings()).passed


def test_a_loss_of_reward_is_borne_by_the_spread_of_the_stable_versions_rewards() -> None:
    # Rewards 0, 4, 8: standard deviation 4, of which 0.03 are 0.12.
    examined = replace(PASSES, rewards={"stable": [0.0, 4.0, 8.0]}, reward=compared(-0.3, -0.11))
    assert judge(examined, GateSettings()).passed
    verdict = judge(replace(examined, reward=compared(-0.3, -0.13)), GateSettings())
    assert "mean reward fell by 0.215" in verdict.reason
    assert "more than the 0.12 that is borne" in verdict.reason
    worse = replace(examined, reward=compared(-0.6, -0.4))
    assert judge(worse, GateSettings(reward_margin=0.1)).passed
    assert not judge(examined, GateSettings(reward_margin=0.0)).passed
    # A reward model that hardly varies: 0.0012 lower is nothing where rewards differ by 0.04.
    flat = {"stable": [0.48, 0.5, 0.52, 0.46, 0.54]}  # standard deviation 0.0316
    small = replace(PASSES, rewards=flat, reward=compared(-0.0016, -0.0008))
    assert judge(small, GateSettings()).passed


def test_the_change_of_an_adapter_is_the_norm_of_its_product(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = {
        "model.q.weight": torch.randn(6, 5),
        "model.v.weight": torch.randn(3, 5),
        "model.untouched.weight": torch.randn(9, 9),
    }
    halves = {
        name: (torch.randn(2, 5), torch.randn(rows, 2)) for name, rows in (("q", 6), ("v", 3))
    }
    for folder in ("base", "adapter", "full"):
        (tmp_path / folder).mkdir()
    save_file(base, tmp_path / "base" / "model.safetensors")
    adapter = {}
    for name, (a, b) in halves.items():
        adapter[f"base_model.model.model.{name}.lora_A.weight"] = a
        adapter[f"base_model.model.model.{name}.lora_B.weight"] = b
    save_file(adapter, tmp_path / "adapter" / "adapter_model.safetensors")
    config = json.dumps({"r": 2, "lora_alpha": 6})
    (tmp_path / "adapter" / "adapter_config.json").write_text(config)
    merged = base | {
        f"model.{name}.weight": base[f"model.{name}.weight"] + 3.0 * b @ a
        for name, (a, b) in halves.items()
    }
    save_file(merged, tmp_path / "full" / "model.safetensors")

    change = BaseDistance(tmp_path / "base", WeightsKind.LORA).of(tmp_path / "adapter")
    whole = BaseDistance(tmp_path / "base", WeightsKind.FULL).of(tmp_path / "full")

    expected = math.sqrt(sum(float((3.0 * b @ a).square().sum()) for a, b in halves.values()))
    touched = math.sqrt(sum(float(base[f"model.{n}.weight"].square().sum()) for n in "qv"))
    assert change.norm == pytest.approx(expected, rel=1e-5)
    assert change.relative == pytest.approx(expected / touched, rel=1e-5)
    assert whole.norm == pytest.approx(expected, rel=1e-5)


def test_bounds_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="pause_after must be set_aside_after or more"):
        GateSettings(pause_after=1)
