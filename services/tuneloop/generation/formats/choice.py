"""Which formats a model uses, as its chat template and its tokens tell."""

from collections.abc import Mapping
from typing import Any

from tuneloop.errors import SettingsError
from tuneloop.generation.formats.harmony import CHANNEL, MESSAGE, HarmonyReasoning, HarmonyTools
from tuneloop.generation.formats.reasoning import SETTING, ReasoningFormat
from tuneloop.generation.formats.tags import TagFormat
from tuneloop.generation.formats.tool_calls import ToolFormat

AUTO, NONE = "auto", "none"
HARMONY_REASONING, HARMONY_TOOLS = "openai_gptoss", "openai"
"""vLLM's names."""

tags: Mapping[str, TagFormat] = {
    "qwen3": TagFormat(begin="<think>", end="</think>"),
    "deepseek_r1": TagFormat(begin="<think>", end="</think>", always=True),
    "mistral": TagFormat(begin="[THINK]", end="[/THINK]"),
    "seed_oss": TagFormat(begin="<seed:think>", end="</seed:think>"),
}
"""Formats of both engines, by vLLM's names."""

calls_of_template = (
    ("<function=", "qwen3_coder"),
    ("<arg_key>", "glm45"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("<|python_tag|>", "llama3_json"),
    ("Environment: ipython", "llama3_json"),
    ("<tool_call>", "hermes"),
)
"""What a chat template writes around calls, the most telling first, and vLLM's name of that."""


def own_reasoning_format(name: str) -> ReasoningFormat | None:
    """Return a format of both engines by its name; None for another."""
    return HarmonyReasoning() if name == HARMONY_REASONING else tags.get(name)


def own_tool_format(name: str) -> ToolFormat | None:
    """Return a format of both engines by its name; None for another."""
    return HarmonyTools() if name == HARMONY_TOOLS else None


def reasoning_names() -> list[str]:
    """Return the names of the formats of both engines."""
    return sorted((HARMONY_REASONING, *tags))


def unknown_reasoning(name: str, names: list[str]) -> SettingsError:
    """Return the error for a name that is none."""
    return SettingsError(
        f"{SETTING}={name}: must be {AUTO}, {NONE} or one of {', '.join(names)}",
        param="reasoning_parser",
    )


def template_of(tokenizer: Any) -> str:
    """Return the chat template, or all of several; empty without one."""
    return str(tokenizer.chat_template or "")


def speaks_harmony(tokenizer: Any) -> bool:
    """Return whether a model writes Harmony."""
    vocabulary = tokenizer.get_vocab()
    return CHANNEL in template_of(tokenizer) and {CHANNEL, MESSAGE} <= vocabulary.keys()


def choose_reasoning(tokenizer: Any) -> str:
    """Return the name of the format of a model's thoughts; empty if nothing tells."""
    if speaks_harmony(tokenizer):
        return HARMONY_REASONING
    template, vocabulary = template_of(tokenizer), tokenizer.get_vocab()
    for name, form in tags.items():
        if form.end in template and (form.begin in template or form.begin in vocabulary):
            return name
    return ""


def choose_tools(tokenizer: Any) -> str:
    """Return the name of the format of a model's calls; empty if nothing tells."""
    if speaks_harmony(tokenizer):
        return HARMONY_TOOLS
    template = template_of(tokenizer)
    if "tools" not in template:
        return ""
    return next((name for mark, name in calls_of_template if mark in template), "")
