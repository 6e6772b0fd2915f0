"""docs/algorithms.md keeps up with the code: every algorithm, metric and setting it should name."""

import re
from pathlib import Path

from support.policy_samples import SampleMaker

from tuneloop.learner.trainer.algorithms import algorithms, offline_algorithms
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import CHOICES, TrainerSettings

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "algorithms.md").read_text()
NAMED = set(re.findall(r"`([a-zA-Z_0-9]+)`", PAGE))
OF_THE_MACHINE = {
    "betas",
    "compile",
    "device",
    "gradient_checkpointing",
    "kind",
    "learning_rate",
    "lora_alpha",
    "lora_rank",
    "max_length",
    "packed_attention",
    "packing",
    "seed",
    "threads",
    "token_budget",
    "weight_decay",
}
"""Settings that are no part of an algorithm."""


def test_every_algorithm_has_its_row_and_every_picture_and_file_exists() -> None:
    for name in offline_algorithms():
        assert f"| `{name}` |" in PAGE
    for picture in re.findall(r"\]\((curves/.+?)\)", PAGE):
        assert (DOCS / picture).is_file(), picture
    assert len(re.findall(r"\]\(curves/", PAGE)) == len(list((DOCS / "curves").glob("*.png")))
    for path in re.findall(r"`((?:tests|learner)/[^`]+)`", PAGE):
        assert (DOCS.parent / path).exists(), path


def test_every_setting_of_an_algorithm_is_named_with_all_it_can_be() -> None:
    settings = set(TrainerSettings.__dataclass_fields__) - OF_THE_MACHINE
    assert sorted(settings - NAMED) == []
    for name, choices in CHOICES.items():
        if name not in {"grpo_kl", *OF_THE_MACHINE}:
            assert set(choices) - NAMED <= {"group", "grpo"}, name


def test_every_metric_of_a_step_is_explained(tiny_policy: Path) -> None:
    maker = SampleMaker()
    batches = {
        "sft": maker.demonstrations(2),
        "kto": maker.thumbs(2),
        "dpo": maker.pairs(2),
        "sdft": maker.comments(2),
        "ppo": maker.scored(2),
        "grpo": maker.groups(1),
    }
    assert batches.keys() == {a.objective for a in algorithms.values() if a.trains_policy}
    metrics = PolicyTrainer(tiny_policy, TrainerSettings(threads=1)).step(batches).metrics
    assert sorted(set(metrics) - NAMED) == []
