"""The benchmark of the gate's power decides as the gate does."""

import numpy as np
import pytest

from benchmarks import gate_power
from benchmarks.gate_power import Candidates, Noise, Rule, new, old, simulate
from tuneloop.learner.release.gate.answers import GateMeasurements
from tuneloop.learner.release.gate.suites import compare_suites
from tuneloop.learner.release.gate.verdict import judge


@pytest.mark.parametrize("loss", [0.0, 0.03, 0.06, 0.2])
def test_a_candidate_passes_where_the_gate_lets_it_pass(loss: float) -> None:
    chance = np.random.default_rng(3)
    base = chance.standard_normal((6, 40))
    stable = base + 0.1 * chance.standard_normal((6, 40))
    candidate = stable - loss + 0.1 * chance.standard_normal((6, 40))
    decided = new(
        Candidates(
            number=2,
            from_stable=candidate - stable,
            from_anchor=candidate - base,
            from_best=candidate - base,
            spread=base.std(axis=1, ddof=1),
        )
    )
    for row in range(6):
        scores = [
            {"s": dict(zip(map(str, range(40)), of[row].tolist(), strict=True))}
            for of in (candidate, stable, base)
        ]
        compared = compare_suites(*scores, number=2, settings=gate_power.SETTINGS)
        examined = GateMeasurements(change=0, change_norm=0, stable_version=1, suites=compared)
        assert judge(examined, gate_power.SETTINGS).passed == decided[row]


def test_losses_add_up_under_the_old_rule_alone() -> None:
    noise = Noise.normal(0.98, 243, seed=0)
    before = Rule(name="old", items=12, passes=old, noise_scale=1.0)
    passed, lost = simulate(before, 0.1, noise, runs=40, seed=0)
    assert passed.shape == (40, 20)
    assert lost.mean() > 1
    passed, lost = simulate(Rule(name="new", items=243, passes=new), 0.1, noise, runs=40, seed=0)
    assert lost.max() <= 0.2


def test_noise_is_of_versions_that_followed_each_other() -> None:
    measured = {"versions": ["0", "1", "9"], "values": [[0.0, 2.0], [1.0, 1.0], [5.0, 5.0]]}
    assert gate_power.neighbours(measured) == [(0, 1)]
    noise = Noise.of_versions(measured)
    # The spread is sqrt(2); the step 1, -1 has mean 0.
    assert noise.steps.tolist() == [pytest.approx([2**-0.5, -(2**-0.5)])]
    assert noise.base.tolist() == pytest.approx([-(2**-0.5), 2**-0.5])
