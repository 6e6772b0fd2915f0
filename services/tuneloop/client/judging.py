"""Feedback: the bodies that `POST /v1/feedback` takes, and the methods that make them."""

import secrets
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import (
    Any,
    Generic,
    Literal,
    Protocol,
    Required,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
)

R = TypeVar("R")
"""What giving feedback returns: a `Receipt`, or a coroutine of one."""

Kind = Literal["thumb", "rating", "comparison", "ranking", "demonstration", "comment"]


class Identified(Protocol):
    """A completion, or whatever else knows a completion's id."""

    @property
    def id(self) -> str:
        """The completion's id."""


class Details(TypedDict, total=False):
    """What any feedback may carry."""

    id: str
    """The feedback's own id: the same one again changes nothing. Made up where it is not given."""
    user: str
    """Who judges; by default the user whom the completion was for."""
    metadata: dict[str, str]


class FeedbackBody(Details, total=False):
    """One body, with the fields of its kind."""

    kind: Required[Kind]
    completion_id: str
    value: Literal["up", "down"] | float
    chosen: str
    rejected: list[str]
    ranking: list[str]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Feedback is stored durably."""

    id: str
    """Of the feedback; `client.retract` takes it."""
    status: str
    """`accepted` or `retracted`."""


class FeedbackMethods(Generic[R]):
    """The ways to judge; `Completion | str` everywhere, as an id is all that is needed."""

    @abstractmethod
    def give(self, body: FeedbackBody) -> R:
        """Send one body as it is."""

    @abstractmethod
    def retract(self, feedback: Identified | str) -> R:
        """Take feedback back, by its receipt or id; what learned from it already stays learned."""

    def thumb(
        self,
        completion: Identified | str,
        value: Literal["up", "down"],
        **details: Unpack[Details],
    ) -> R:
        """Say that a completion is good or bad."""
        return self.give(body_of("thumb", details, completion_id=id_of(completion), value=value))

    def rate(self, completion: Identified | str, value: float, **details: Unpack[Details]) -> R:
        """Give a completion a number; larger is better."""
        return self.give(body_of("rating", details, completion_id=id_of(completion), value=value))

    def edit(self, completion: Identified | str, better: str, **details: Unpack[Details]) -> R:
        """Say what the answer should have been."""
        return self.give(
            body_of("demonstration", details, completion_id=id_of(completion), text=better)
        )

    def comment(self, completion: Identified | str, text: str, **details: Unpack[Details]) -> R:
        """Remark on a completion in words."""
        return self.give(body_of("comment", details, completion_id=id_of(completion), text=text))

    def compare(
        self,
        chosen: Identified | str,
        *rejected: Identified | str,
        **details: Unpack[Details],
    ) -> R:
        """Say that `chosen` is better than each of `rejected`."""
        worse = [id_of(completion) for completion in rejected]
        return self.give(body_of("comparison", details, chosen=id_of(chosen), rejected=worse))

    def rank(self, best_first: Sequence[Identified | str], **details: Unpack[Details]) -> R:
        """Order completions, the best first."""
        ids = [id_of(completion) for completion in best_first]
        return self.give(body_of("ranking", details, ranking=ids))


def body_of(kind: Kind, details: Details, **judgement: Any) -> FeedbackBody:
    """A body of this kind."""
    return cast(FeedbackBody, {**details, "kind": kind, **judgement})


def id_of(thing: Identified | str) -> str:
    """An id, however it was given."""
    return thing if isinstance(thing, str) else thing.id


def identified(body: FeedbackBody, user: str | None) -> FeedbackBody:
    """The body with an id of its own, so that sending it again cannot count twice."""
    full: FeedbackBody = {"id": f"fb-{secrets.token_hex(12)}", **body}
    if user is not None:
        full.setdefault("user", user)
    return full
