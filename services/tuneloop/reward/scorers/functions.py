"""Python functions as scorers: the only code a user has to write.

    def reward(prompts: list[str], completions: list[str], **columns) -> list[float]

It returns a number for each completion, larger is better, or None if it cannot score one: that
completion is then not learned from. It may be `async`. `columns` are lists as long as
`completions`: the further columns of the prompts file, by name, and

* `messages`: the conversation, a list of `{"role", "content"}`; empty for a plain prompt;
* `finish_reason`: `stop` or `length`; None for text that no policy sampled;
* in the service also `completion_id`, `user_hash` and `policy_version`, which are None for a
  completion that is not a rollout.

More may be added, so take `**columns`. These names win over columns of the prompts file.

    function = load_function("my_rewards:brevity")
    scores = outputs.score_rows(function, prompts, completions, {"topic": topics})
"""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tuneloop.errors import SettingsError
from tuneloop.reward.scorer import columns_of


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionScorer:
    """A Python function as a scorer."""

    name: str
    """Its `module:function`."""
    weight: float
    function: Callable[..., Any]
    informative: bool = True
    """A function's scores always count."""

    def score(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> Any:
        """Call the function; return and raise what it does."""
        return self.function(prompts=list(prompts), completions=list(completions), **columns)


def load_function(reference: str, weight: float = 1.0) -> FunctionScorer:
    """Import `module:function` or `path/to/file.py:function`.

    Modules are searched for in the working directory too. Raises `SettingsError` saying what is
    wrong with the reference.
    """
    where = f"reward function {reference!r}"
    module_name, colon, function_name = reference.rpartition(":")
    if not (module_name and colon and function_name):
        raise SettingsError(f"{where} must be module:function", param="functions")
    try:
        module = _import(module_name)
    except Exception as error:
        # Whatever the module raises on import, the setting that names it is at fault.
        raise SettingsError(
            f"{where}: {type(error).__name__}: {error}", param="functions"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise SettingsError(f"{where}: {module_name} has no such function", param="functions")
    try:
        inspect.signature(function).bind(prompts=[], completions=[], **columns_of([]))
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"{where} must take (prompts, completions, **columns): {error}", param="functions"
        ) from error
    return FunctionScorer(name=reference, weight=weight, function=function)


def _import(module_name: str) -> ModuleType:
    if not module_name.endswith(".py"):
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        return importlib.import_module(module_name)
    path = Path(module_name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
