"""Loads settings: one class per process, read from the environment and checked at start.

A wrong value, or an unknown name, stops the process with a message that names the setting and what
it accepts: a service must never run on a default because of a typo.
"""

import difflib
import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings

from tuneloop.errors import SettingsError

S = TypeVar("S", bound=BaseSettings)

Port = Annotated[int, Field(ge=1, le=65535)]
AnyPort = Annotated[int, Field(ge=0, le=65535)]
"""0 takes a free one."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
"""Of a policy or a tenant: it stands in subjects of the bus and in paths."""


def load(settings_class: type[S], environ: Mapping[str, str] | None = None, **values: Any) -> S:
    """Build `settings_class` from the environment and `values`; raise `SettingsError`."""
    environ = os.environ if environ is None else environ
    refuse_unknown_names(settings_class, environ)
    try:
        return settings_class(**values)
    except ValidationError as error:
        raise SettingsError(describe(settings_class, error)) from error


def refuse_unknown_names(settings_class: type[BaseSettings], environ: Mapping[str, str]) -> None:
    """Raise `SettingsError` for a variable with the class's prefix that it does not read."""
    prefix = settings_class.model_config.get("env_prefix", "").upper()
    known = {f"{prefix}{name}".upper() for name in settings_class.model_fields}
    old = {f"{prefix}{name}".upper() for name in getattr(settings_class, "old_names", ())}
    for name in environ:
        upper = name.upper()
        if not upper.startswith(prefix) or upper.split("__")[0] in known | old:
            continue
        close = difflib.get_close_matches(upper, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(sorted(known))}"
        raise SettingsError(f"unknown setting {name}{hint}", param=name)


def describe(settings_class: type[BaseSettings], error: ValidationError) -> str:
    """Return a line per wrong setting: its environment name, the problem, the accepted values."""
    prefix = settings_class.model_config.get("env_prefix", "").upper()
    lines = []
    for problem in error.errors():
        if not problem["loc"]:
            # About several settings at once: its input is all of them, including secrets.
            lines.append(str(problem["msg"]).removeprefix("Value error, "))
            continue
        path = "__".join(str(part) for part in problem["loc"]).upper()
        field = settings_class.model_fields.get(str(problem["loc"][0]))
        meaning = f" ({field.description})" if field is not None and field.description else ""
        lines.append(f"{prefix}{path}={problem['input']!r}: {problem['msg']}{meaning}")
    return "\n".join(lines)


def load_or_exit(settings_class: type[S]) -> S:
    """Load settings in `main()`; for a wrong one print the message and exit with status 2."""
    try:
        return load(settings_class)
    except SettingsError as error:
        sys.stderr.write(f"{error.message}\n")
        raise SystemExit(2) from error
