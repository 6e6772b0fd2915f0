"""Names that settings of the learner had before, accepted for one release with a warning."""

import logging
import os
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger("tuneloop.learner")

OLD_NAMES = ("ppo", "ppo_batch_size")


def with_old_names(given: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return settings, with what is set under an old name moved to the name it has now.

    Old names are looked up in `given` and, with `prefix`, in the environment. Raises `ValueError`
    where old and new contradict each other.
    """
    old = {k.upper(): v for k, v in os.environ.items()}
    settings = {k: v for k, v in given.items() if k not in OLD_NAMES}

    def take(name: str, new: str) -> str | None:
        value = given.get(name, old.get(f"{prefix}{name}".upper()))
        if value is not None:
            logger.warning("%s is now %s", f"{prefix}{name}".upper(), f"{prefix}{new}".upper())
        return None if value is None else str(value)

    def agree(agrees: bool, name: str, value: str, new: str) -> None:
        if not agrees:
            raise ValueError(
                f"{prefix}{name.upper()}={value} contradicts "
                f"{prefix}{new.upper()}={settings[new]}; remove the first, which is an old name"
            )

    size = take("ppo_batch_size", "policy_gradient_batch_size")
    if size is not None:
        known = settings.setdefault("policy_gradient_batch_size", size)
        agree(str(known) == size, "ppo_batch_size", size, "policy_gradient_batch_size")
    ppo = take("ppo", "policy_gradient")
    if ppo is not None:
        if ppo not in ("auto", "on", "off"):
            raise ValueError(f"{prefix}PPO={ppo!r}: must be auto, on or off")
        known = settings.setdefault("policy_gradient", "off" if ppo == "off" else "auto")
        agree((known == "off") == (ppo == "off"), "ppo", ppo, "policy_gradient")
    if ppo == "on":
        known = settings.setdefault("uninformative_scores", "true")
        agree(str(known).lower() in ("true", "1"), "ppo", ppo, "uninformative_scores")
    return settings
