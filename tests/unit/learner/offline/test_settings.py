"""Settings of a run: those of one that is resumed stay as they were when it was started."""

import dataclasses
from typing import Any

from tuneloop.learner.offline.run.settings import earlier_defaults, make_settings
from tuneloop.learner.trainer.settings import BEFORE


def settings(recorded: dict[str, Any] | None = None, *assignments: str, **fixed: Any) -> Any:
    return make_settings("kto", assignments, fixed, sampled=False, recorded=recorded)


def test_a_run_of_today_is_resumed_with_what_it_recorded() -> None:
    document = settings(seed=3).document()
    assert settings(document, seed=3).document() == document


def test_a_setting_newer_than_the_run_is_not_in_its_record() -> None:
    recorded = settings().document()
    del recorded["beta_dpo"], recorded["on_long"]
    assert settings(recorded).document() == recorded


def test_a_newer_setting_that_is_given_counts() -> None:
    recorded = settings().document()
    del recorded["beta_dpo"]
    assert settings(recorded, "beta_dpo=0.3").document() == recorded | {"beta_dpo": 0.3}


def test_another_value_than_a_default_is_not_taken_from_the_record() -> None:
    recorded = settings(None, "beta_kto=0.7").document()
    assert settings(recorded).document()["beta_kto"] == 0.1


def test_a_default_that_changed_is_what_it_was() -> None:
    @dataclasses.dataclass
    class Changed:
        rate: float = dataclasses.field(default=2.0, metadata={BEFORE: 1.0})
        added: float = dataclasses.field(default=2.0, metadata={BEFORE: 0.0})
        same: float = 1.0

    assert earlier_defaults(Changed, {"rate": 1.0, "same": 1.0}) == (
        {"rate": 1.0, "added": 0.0, "same": 1.0},
        {"added"},
    )
    assert earlier_defaults(Changed, {"rate": 5.0, "added": 2.0, "same": 3.0}) == ({}, set())


def test_ppo_offline_holds_the_policy_and_an_older_run_goes_on_as_it_was() -> None:
    held = {"normalize_rewards": True, "kl_coef": 0.1, "kl_target": 2.0, "kl_horizon": 128}
    document = make_settings("ppo", (), {}, sampled=True).document()
    assert document | held == document
    older = document | {
        "normalize_rewards": False,
        "kl_coef": 0.05,
        "kl_target": None,
        "kl_horizon": 10_000,
    }
    assert make_settings("ppo", (), {}, sampled=True, recorded=older).document() == older


def test_a_policy_is_anchored_offline_and_an_older_run_goes_on_without() -> None:
    document = settings().document()
    assert document["anchor_weight"] == 0.1
    assert settings(None, "anchor_weight=0").document()["anchor_weight"] == 0
    older = document | {"anchor_weight": 0.0}
    assert settings(older).document() == older
    assert "anchor_weight" not in make_settings("reward-model", (), {}, sampled=False).document()
