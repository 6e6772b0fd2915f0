"""What a request body says of thoughts: how much to think, and arguments for the chat template."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from tuneloop.text.unicode import json_text

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""`none` is the switch, where the model has one; without degrees the others mean "think"."""

MAX_OPTIONS = 16
MAX_OPTION_CHARACTERS = 4096
OPTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
OURS = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
)
"""Arguments of a chat template that the service sets."""


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options; raises `ValueError` naming one that cannot be taken."""
    for name in options:
        if name in OURS or OPTION_NAME.fullmatch(name) is None:
            raise ValueError(f"{name[:64]!r} is not an option of a chat template")
    if len(json_text(options)) > MAX_OPTION_CHARACTERS:
        raise ValueError(f"must have at most {MAX_OPTION_CHARACTERS} characters as JSON")
    return options


TemplateOptions = Annotated[
    dict[str, Any], Field(max_length=MAX_OPTIONS), AfterValidator(check_options)
]


def template_options(
    effort: str | None, enable_thinking: bool | None, options: Mapping[str, Any] | None
) -> dict[str, str]:
    """Return the arguments for the chat template, JSON by name; named fields win."""
    found = dict(options or {})
    if effort is not None:
        found["reasoning_effort"] = effort
    if enable_thinking is not None:
        found["enable_thinking"] = enable_thinking
    return {name: json.dumps(value, ensure_ascii=False) for name, value in found.items()}
