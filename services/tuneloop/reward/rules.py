"""Python functions as scorers: `module:function` in the settings.

    def reward(prompts: list[str], completions: list[str], **columns) -> list[float]

`columns` are lists as long as `completions`: `messages`, `completion_id`, `user_hash`,
`policy_version`, `finish_reason`; more may come, so take `**columns`. An entry of the answer may be
None: this completion is not the function's to score.
"""

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.errors import SettingsError
from tuneloop.reward.scorer import columns_of


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionScorer:
    """A Python function as a scorer."""

    name: str
    """Its `module:function`."""
    weight: float
    function: Callable[..., Sequence[float | None]]
    informative: bool = True
    """What a function says, it means."""

    def score(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> Sequence[float | None]:
        """Call the function; may raise whatever the function raises."""
        return self.function(prompts=list(prompts), completions=list(completions), **columns)


def load_function(reference: str, weight: float) -> FunctionScorer:
    """Import `module:function`; raises `SettingsError` saying what is wrong with it."""
    where = f"TUNELOOP_REWARD_FUNCTIONS: {reference!r}"
    module_name, colon, function_name = reference.partition(":")
    if not (module_name and colon and function_name):
        raise SettingsError(f"{where} must be module:function", param="functions")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # Whatever the module raises while it is imported, the setting that names it is at fault.
        raise SettingsError(
            f"{where}: {type(error).__name__}: {error}", param="functions"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise SettingsError(f"{where}: {module_name} has no such function", param="functions")
    if inspect.iscoroutinefunction(function):
        raise SettingsError(f"{where} is async; give a plain function", param="functions")
    try:
        inspect.signature(function).bind(prompts=[], completions=[], **columns_of([]))
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"{where} must take (prompts, completions, **columns): {error}", param="functions"
        ) from error
    return FunctionScorer(name=reference, weight=weight, function=function)
