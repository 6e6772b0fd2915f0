"""The settings a version was trained with, for its lineage: those of learning, no secrets."""

import json
from collections.abc import Mapping
from dataclasses import asdict

from tuneloop.learner.settings import LearnerSettings

OF_THE_POLICY = (
    "batch_size",
    "min_batch_size",
    "replay_fraction",
    "policy_gradient",
    "policy_gradient_batch_size",
    "uninformative_scores",
    "max_staleness",
    "feedback_max_age_days",
    "samples_per_prompt",
    "prompt_temperature",
    "publish_every_steps",
    "publish_every_seconds",
    "release",
)
OF_THE_REWARD_MODEL = ("reward_batch_size", "reward_replay_fraction", "feedback_max_age_days")


def trained_with(settings: LearnerSettings) -> Mapping[str, str]:
    """JSON by model."""
    given = settings.model_dump(mode="json")
    guards = given["guards"]
    policy = {name: given[name] for name in OF_THE_POLICY} | {"guards": guards}
    reward_model = {name: given[name] for name in OF_THE_REWARD_MODEL} | {"guards": guards}
    return {
        "policy": _json(policy | {"trainer": asdict(settings.trainer())}),
        "reward_model": _json(reward_model | {"trainer": asdict(settings.reward_trainer())}),
    }


def _json(document: Mapping[str, object]) -> str:
    return json.dumps(document, sort_keys=True, default=str)
