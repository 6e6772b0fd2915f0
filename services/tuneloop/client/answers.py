"""Answers: their text, their version, and methods to give feedback on them."""

from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias, Unpack

from tuneloop.api.openai import ChatChoice, ChatCompletion
from tuneloop.api.openai import Usage as UsageDocument
from tuneloop.client.judging import Details, FeedbackMethods, R, Receipt, SignalKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens counted by the service."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    reasoning_tokens: int = 0
    """Of the completion tokens, those of thoughts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a streamed answer; printed, it is its text."""

    text: str
    """Empty in a piece of the thought."""
    reasoning: str = ""
    """A part of what the model thinks before it answers."""
    index: int = 0
    """Which choice it belongs to."""
    policy_version: int = 0

    def __str__(self) -> str:
        """The text."""
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice(Generic[R]):
    """One completion of a prompt."""

    id: str
    """What feedback names."""
    text: str
    policy_version: int
    """The version that sampled its last token."""
    finish_reason: str | None
    """`stop`, `length`, `tool_calls` …; None while it is being written."""
    index: int = 0
    reasoning: str = field(default="", repr=False)
    """What the model thought before it answered; empty where it did not."""
    message: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """As the next request's `messages` takes it, with its tool calls."""
    logprobs: Mapping[str, Any] | None = field(default=None, repr=False)
    judge: FeedbackMethods[R] = field(repr=False, compare=False)
    """Sends the feedback."""

    def thumb(self, value: Literal["up", "down"], **details: Unpack[Details]) -> R:
        """Give a thumb up or down."""
        return self.judge.thumb(self, value, **details)

    def rate(self, value: float, **details: Unpack[Details]) -> R:
        """Rate it with a number; larger is better."""
        return self.judge.rate(self, value, **details)

    def edit(self, better: str, **details: Unpack[Details]) -> R:
        """Give a better text."""
        return self.judge.edit(self, better, **details)

    def comment(self, text: str, **details: Unpack[Details]) -> R:
        """Comment on it."""
        return self.judge.comment(self, text, **details)

    def measure(self, name: str, value: bool | float, **details: Unpack[Details]) -> R:
        """Send a figure that you measured of it: `answer.measure("task_solved", True)`."""
        return self.judge.measure(self, name, value, **details)

    def signal(
        self, kind: SignalKind, *, distance: float | None = None, **details: Unpack[Details]
    ) -> R:
        """Say what the user did with it: `answer.signal("copied")`."""
        return self.judge.signal(self, kind, distance=distance, **details)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Choice[R], Generic[R]):
    """The answer to one request; used as a completion it is its first choice."""

    model: str
    choices: tuple[Choice[R], ...]
    usage: Usage | None
    """None if a stream was not read to its end."""


Completion: TypeAlias = Answer[Receipt]
AsyncCompletion: TypeAlias = Answer[Coroutine[Any, Any, Receipt]]


def answer_from(judge: FeedbackMethods[R], document: ChatCompletion) -> Answer[R]:
    """Return the answer in a response of `/v1/chat/completions`."""
    version = int(document["policy_version"])
    choices = tuple(choice_from(judge, choice, version) for choice in document["choices"])
    return answer_of(judge, choices, str(document["model"]), document.get("usage"))


def choice_from(judge: FeedbackMethods[R], document: ChatChoice, version: int) -> Choice[R]:
    message = document["message"]
    return Choice(
        id=document["completion_id"],
        text=message.get("content") or "",
        policy_version=version,
        finish_reason=document["finish_reason"],
        index=document["index"],
        reasoning=message.get("reasoning_content") or "",
        message=message,
        logprobs=document.get("logprobs"),
        judge=judge,
    )


def answer_of(
    judge: FeedbackMethods[R],
    choices: Sequence[Choice[R]],
    model: str,
    usage: UsageDocument | None,
) -> Answer[R]:
    """Return an answer of at least one choice."""
    first = choices[0]
    return Answer(
        id=first.id,
        text=first.text,
        policy_version=first.policy_version,
        finish_reason=first.finish_reason,
        reasoning=first.reasoning,
        message=first.message,
        logprobs=first.logprobs,
        judge=judge,
        model=model,
        choices=tuple(choices),
        usage=None if usage is None else usage_from(usage),
    )


def usage_from(document: UsageDocument) -> Usage:
    details = document.get("completion_tokens_details")
    return Usage(
        prompt_tokens=document["prompt_tokens"],
        completion_tokens=document["completion_tokens"],
        total_tokens=document["total_tokens"],
        reasoning_tokens=details["reasoning_tokens"] if details else 0,
    )
