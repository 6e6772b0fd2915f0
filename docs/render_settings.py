"""Render docs/settings.md from the settings classes: `python -m docs.render_settings`.

A test renders it again and compares, so the page cannot fall behind the code.
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from tuneloop.gateway.settings import GatewaySettings
from tuneloop.generation.settings import GenerationSettings
from tuneloop.learner.settings import LearnerSettings
from tuneloop.redaction.redactor import RedactionSettings
from tuneloop.reward.settings import RewardSettings
from tuneloop.supervisor.settings import SupervisorSettings

PAGE = Path(__file__).with_name("settings.md")
PROCESSES: dict[str, type[BaseSettings]] = {
    "tuneloop up": SupervisorSettings,
    "gateway": GatewaySettings,
    "gateway and generation": RedactionSettings,
    "generation": GenerationSettings,
    "reward": RewardSettings,
    "learner": LearnerSettings,
}
INTRODUCTION = """# Settings

Each process reads its settings from the environment, once, at start. A value that does not fit, or
a name with the process's prefix that nothing reads, stops the process with a message that names it.
`tuneloop up` gives its processes what they need to find each other; whatever you set yourself in
the environment wins.

Four things work in every process: `TUNELOOP_LOG_LEVEL` (DEBUG, INFO, WARNING, ERROR),
`TUNELOOP_LOG_FORMAT` (text, json), `TUNELOOP_LOG_QUOTES` (no, yes: whether log lines may quote
prompts and completions) and OpenTelemetry's `OTEL_…`; see [observability.md](observability.md).

This page is generated: `python -m docs.render_settings`.
"""


def default_of(settings_class: type[BaseModel], name: str) -> str:
    """The default as a reader would type it; empty where the setting is required."""
    field = settings_class.model_fields[name]
    value = field.get_default(call_default_factory=False)
    if value is PydanticUndefined:
        return "*required*" if field.is_required() else ""
    return "" if value is None or value == "" else f"`{value}`"


def rows(settings_class: type[BaseModel], prefix: str) -> Iterator[str]:
    """A line of the table for each setting; of a group of settings, one for each of its own."""
    for name, field in settings_class.model_fields.items():
        full = f"{prefix}{name.upper()}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from rows(field.annotation, f"{full}__")
            continue
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        yield f"| `{full}` | {default_of(settings_class, name)} | {meaning} |\n"


def render() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for process, settings_class in PROCESSES.items():
        prefix = settings_class.model_config.get("env_prefix", "").upper()
        parts.append(f"\n## {process}\n\n| setting | default | meaning |\n| --- | --- | --- |\n")
        parts += rows(settings_class, prefix)
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render())
