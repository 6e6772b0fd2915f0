"""The protocol of a scorer, and its input. Reward models, functions and judges are scorers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tuneloop.rollouts import ChatMessage, FinishReason, Rollout, prompt_as_text


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringInput:
    """A completion to score, and what is known about it."""

    prompt: str
    """As plain text."""
    completion: str
    messages: tuple[ChatMessage, ...] = ()
    """The conversation, if the prompt was one."""
    completion_id: str | None = None
    user_hash: str | None = None
    policy_version: int | None = None
    finish_reason: FinishReason | None = None
    """The last four are None for a completion that is not a rollout."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the prompts file."""


class Scorer(Protocol):
    """Gives completions a score; larger is better."""

    @property
    def name(self) -> str:
        """The scorer's name in results, metrics and the weights of the settings."""
        ...

    @property
    def weight(self) -> float:
        """Its weight in the reward."""
        ...

    @property
    def informative(self) -> bool:
        """Whether its scores mean something yet."""
        ...

    def score(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> Any:
        """Return a score for each completion, in order; None if it cannot be scored. May raise.

        May return an awaitable of the scores. `outputs.run_scorer` checks what is returned.
        """
        ...


def input_from_rollout(rollout: Rollout) -> ScoringInput:
    """Return a rollout as an input."""
    return ScoringInput(
        prompt=prompt_as_text(rollout.messages, rollout.prompt_text),
        completion=rollout.completion_text,
        messages=rollout.messages,
        completion_id=rollout.completion_id,
        user_hash=rollout.user_hash,
        policy_version=rollout.policy_version,
        finish_reason=rollout.finish_reason,
        columns=rollout.columns,
    )


def columns_of(candidates: Sequence[ScoringInput]) -> dict[str, list[Any]]:
    """Return everything but prompts and completions, as one list per column.

    The facts of every rollout have fixed names; a column of the prompts file with one of these
    names is left out. If a row lacks a column, its value is None.
    """
    names = dict.fromkeys(name for c in candidates for name in c.columns)
    for taken in ("prompts", "completions"):
        names.pop(taken, None)
    return {name: [c.columns.get(name) for c in candidates] for name in names} | {
        "messages": [
            [{"role": m.role, "content": m.content} for m in c.messages] for c in candidates
        ],
        "completion_id": [c.completion_id for c in candidates],
        "user_hash": [c.user_hash for c in candidates],
        "policy_version": [c.policy_version for c in candidates],
        "finish_reason": [c.finish_reason for c in candidates],
    }
