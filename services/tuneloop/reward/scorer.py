"""What a scorer is, and what it is given. Reward models and Python functions are both scorers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tuneloop.models.reward_text import prompt_as_text
from tuneloop.rollouts import ChatMessage, FinishReason, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One completion to score, and what is known about it."""

    prompt: str
    """What was asked, as plain text."""
    completion: str
    messages: tuple[ChatMessage, ...] = ()
    """The conversation, where the prompt was one."""
    completion_id: str | None = None
    user_hash: str | None = None
    policy_version: int | None = None
    finish_reason: FinishReason | None = None
    """The last four are None for a completion that is not a rollout."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """What else the prompts file says of the prompt."""


class Scorer(Protocol):
    """Gives completions a number; larger is better."""

    @property
    def name(self) -> str:
        """Names the scorer in results, metrics and the weights of the settings."""
        ...

    @property
    def weight(self) -> float:
        """Its share in the reward."""
        ...

    @property
    def informative(self) -> bool:
        """Whether it has something to say yet."""
        ...

    def score(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> Any:
        """A score for each completion, in order; None where it cannot be scored. May raise.

        May return an awaitable of the scores. `verdicts.ask` checks what is returned.
        """
        ...


def candidate_of(rollout: Rollout) -> Candidate:
    """A rollout, to be scored."""
    return Candidate(
        prompt=prompt_as_text(rollout.messages, rollout.prompt_text),
        completion=rollout.completion_text,
        messages=rollout.messages,
        completion_id=rollout.completion_id,
        user_hash=rollout.user_hash,
        policy_version=rollout.policy_version,
        finish_reason=rollout.finish_reason,
        columns=rollout.columns,
    )


def columns_of(candidates: Sequence[Candidate]) -> dict[str, list[Any]]:
    """Everything but prompts and completions, one list for each column.

    What is known of every rollout has its fixed name; a column of the prompts file by one of these
    names is left out. Where a row has no such column its value is None.
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
