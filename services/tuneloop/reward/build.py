"""Builds the scoring out of a reward model's folder, functions and a judge, each with its weight.

It knows no transport: the service builds its scorers with it, and so does training on files.

    scoring = build(functions=["my_rewards:brevity"], reward_model=folder, weights={...})
    rewards = scoring.rewards(prompts, completions, columns)
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuneloop.errors import SettingsError
from tuneloop.gpus.devices import check_device
from tuneloop.reward.scorer import Scorer
from tuneloop.reward.scorers import judge as judges
from tuneloop.reward.scorers.deadline import LimitedScorer
from tuneloop.reward.scorers.functions import load_function
from tuneloop.reward.scorers.judge import Judge, JudgeScorer, JudgeSettings
from tuneloop.reward.scorers.reward_model import SCORER_NAME, base_scorer
from tuneloop.reward.scoring import Scoring


def build(
    *,
    functions: Sequence[str] = (),
    reward_model: Path | None = None,
    judge: JudgeSettings | None = None,
    weights: Mapping[str, float] | None = None,
    max_length: int = 512,
    device: str = "cpu",
    normalize: bool = False,
    function_timeout: float | None = None,
) -> Scoring:
    """Build the weighted sum of all named scorers; a scorer without a weight in `weights` has 1.

    Their names in `weights` are `module:function`, `reward_model` and `judge`. `max_length` and
    `device` are the reward model's; `normalize` is as in `Scoring`. `function_timeout` is the most
    seconds a function may take for a batch; without it a function that hangs blocks scoring.

    Raises:
        SettingsError: nothing is named, a function cannot be loaded (`param` "functions"), the
            constitution cannot be read, or a weight is not a number or names no scorer (`param`
            "weights"), or torch cannot compute on the device (`param` "device").
        CorruptData: the folder is not a reward model.

    """
    shares = dict(weights or {})
    others: list[Scorer] = []
    for name in functions:
        function = load_function(name, shares.get(name, 1.0))
        if function_timeout is None:
            others.append(function)
        else:
            others.append(LimitedScorer(function, function_timeout))
    if judge is not None:
        weight = shares.get(judges.SCORER_NAME, 1.0)
        others.append(JudgeScorer(judge=Judge(judge), weight=weight))
    names = [scorer.name for scorer in others] + [SCORER_NAME] * (reward_model is not None)
    if not names:
        raise SettingsError("nothing scores: name a reward model, a function or a judge")
    for name, weight in shares.items():
        if name not in names:
            known = ", ".join(sorted(names))
            raise SettingsError(f"no scorer {name!r} to weigh; there are {known}", param="weights")
        if not math.isfinite(weight):
            raise SettingsError(f"the weight of {name} is {weight}", param="weights")
    model = None
    if reward_model is not None:
        check_device(device)
        model = base_scorer(
            reward_model,
            max_length=max_length,
            weight=shares.get(SCORER_NAME, 1.0),
            device=device,
        )
    return Scoring(others, model, normalize=normalize)
