"""A tiny random model finds out a taste it is never told, by every algorithm."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.hidden_preference import Task, learn, make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("hidden"), seed=0)


def last(scores: list[float], count: int = 5) -> float:
    return sum(scores[-count:]) / count


def test_the_score_of_a_completion_is_the_share_of_its_tokens_that_are_liked() -> None:
    from support.policy_samples import SampleMaker

    sequence = SampleMaker().sequence(2, 4)
    tokens, prompt = sequence.completion_token_ids, sequence.prompt_token_ids
    assert Task().score(sequence) == sum(token % 2 == 0 for token in tokens) / 4
    of_prompt = sum(token % 2 == prompt[0] % 2 for token in tokens) / 4
    assert Task(conditional=True).score(sequence) == of_prompt


@pytest.mark.parametrize(
    "objective",
    ["kto", *(pytest.param(o, marks=pytest.mark.slow) for o in ("sft", "dpo", "ppo", "grpo"))],
)
def test_an_algorithm_learns_the_preference(model: Path, objective: str) -> None:
    curve = learn(model, objective, seed=1, steps=20, task=Task(), learning_rate=3e-3)
    assert last(curve.scores[:3], 3) < 0.62
    assert last(curve.scores, 3) > 0.72


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("sft", {}),
        ("dpo", {}),
        ("dpo", {"dpo_loss_type": "ipo"}),
        ("kto", {}),
        ("ppo", {"kl_coef": 0.0}),
        ("grpo", {}),
        ("grpo", {"advantage_estimator": "rloo", "beta_grpo": 0.0}),
    ],
)
def test_an_algorithm_comes_to_satisfy_the_preference(
    model: Path, objective: str, options: dict[str, Any]
) -> None:
    settings = {"learning_rate": 3e-3, **options}
    curve = learn(model, objective, seed=1, steps=80, task=Task(), **settings)
    # Once all completions are mostly even there are only thumbs up.
    assert last(curve.scores) > (0.8 if objective == "kto" else 0.9)


@pytest.mark.slow
def test_grpo_learns_a_preference_that_depends_on_the_prompt(model: Path) -> None:
    task = Task(conditional=True, prompts=16, group_size=8, completion_tokens=8)
    options = {"learning_rate": 3e-3, "beta_grpo": 0.0, "scale_rewards": "none"}
    curve = learn(model, "grpo", seed=1, steps=150, task=task, **options)
    assert last(curve.scores) > 0.9
