"""Decides whether an answer may be learned from: the caller says so, else it is no side task.

Chat front ends request titles, tags and suggestions from the same model. Nobody judges such
answers, and learning from them would teach the policy to answer like that.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from starlette.datastructures import Headers

from tuneloop.errors import InvalidRequest
from tuneloop.gateway.openai.schemas import ChatRequest, CompletionRequest
from tuneloop.gateway.settings import GatewaySettings

HEADER = "x-tuneloop-train"
PROMPT_CHARACTERS = 500
"""How much of the last turn is compared."""


def may_train(
    settings: GatewaySettings, body: ChatRequest | CompletionRequest, headers: Headers
) -> bool:
    """Return whether to publish the rollout; false in the body or the header decides.

    Raises `InvalidRequest` for a header that is neither true nor false.
    """
    flags = [flag for flag in (body.train, header_flag(headers.get(HEADER))) if flag is not None]
    if flags:
        return all(flags)
    return settings.learn_from_side_tasks or not is_side_task(settings.side_task_prompts, body)


def header_flag(value: str | None) -> bool | None:
    """Return the header's value, or None without it."""
    if value is None:
        return None
    word = value.strip().lower()
    if word not in ("true", "false"):
        raise InvalidRequest(f"{HEADER}: must be true or false", param=HEADER)
    return word == "true"


def is_side_task(patterns: Sequence[str], body: ChatRequest | CompletionRequest) -> bool:
    """Return whether the caller names a task, or the last turn starts like one."""
    if (body.metadata or {}).get("task"):
        return True
    if not patterns or not isinstance(body, ChatRequest):
        return False
    return (
        compile_patterns(tuple(patterns)).match(body.messages[-1].content[:PROMPT_CHARACTERS])
        is not None
    )


@lru_cache(maxsize=4)
def compile_patterns(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Compile one expression for all patterns."""
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
