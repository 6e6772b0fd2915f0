"""Every call of the HTTP API: how to build its request and how to read its answer."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypedDict, TypeVar
from urllib.parse import quote

import httpx

from tuneloop.api.feedback import FeedbackBatchResult
from tuneloop.api.policies import Activated
from tuneloop.client.answers import Answer, answer_from
from tuneloop.client.exceptions import error_from_document
from tuneloop.client.judging import (
    FeedbackBody,
    FeedbackMethods,
    Identified,
    R,
    Receipt,
    SignalBody,
    id_of,
    with_id,
)
from tuneloop.client.records import (
    FeedbackItem,
    FeedbackPage,
    FeedbackReach,
    Policies,
    PolicyVersion,
    Scores,
    page_from,
    policies_from,
    record_from,
)
from tuneloop.errors import CorruptData, InvalidRequest, TuneloopError

T = TypeVar("T")

Prompt = str | Sequence[Mapping[str, Any]]
"""A question, or the messages of a conversation."""

LARGEST_BATCH = 1000


class ChatOptions(TypedDict, total=False):
    """Options of a chat; the names are OpenAI's except for the last six."""

    model: str
    user: str
    max_tokens: int
    temperature: float
    top_p: float
    n: int
    stop: str | list[str]
    seed: int
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[str, float]
    logprobs: bool
    top_logprobs: int
    response_format: Mapping[str, Any]
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any]
    metadata: Mapping[str, Any]
    reasoning_effort: str
    system: str
    """A system message before the others."""
    top_k: int
    enable_thinking: bool
    """Whether the model thinks before it answers."""
    policy_version: int
    """Answer with this version."""
    train: bool
    """False keeps the completion out of learning."""
    session_id: str
    """The conversation that this is a turn of, by your own id; feedback may name it."""


class Filters(TypedDict, total=False):
    """Which feedback to list."""

    kind: str
    value: str
    """`up` or `down`."""
    policy_version: int
    user: str
    user_hash: str
    """A user as other items name them."""
    status: str
    """`accepted`, `retracted`, `expired`."""
    limit: int
    before: str
    """The page before's `next`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiCall(Generic[T]):
    """One request, and how to read its answer."""

    method: str
    path: str
    body: Any = None
    params: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[Any], T]

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Build the request; one that changes something has a key, so that it is safe to repeat."""
        key = {} if self.method == "GET" else {"idempotency-key": uuid.uuid4().hex}
        params = {name: value for name, value in self.params.items() if value is not None}
        try:
            # Given an empty mapping, httpx drops the query that a path has of its own.
            return http.build_request(
                self.method, self.path, json=self.body, params=params or None, headers=key
            )
        except (ValueError, RecursionError) as error:
            # NaN, half of a surrogate pair, a list within itself.
            raise InvalidRequest(f"the request cannot be written as JSON: {error}") from error

    def result(self, response: httpx.Response) -> T:
        """Read a successful response; raises `CorruptData` if another program answered."""
        try:
            return self.read(response.json())
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise CorruptData(
                f"{response.request.url} answered, but not as tuneloop does ({error!r}): "
                "check the URL"
            ) from error


def call_path(method: str, path: str, body: Any) -> ApiCall[Any]:
    """Return a call by its path; the answer is its JSON."""
    return ApiCall(method=method, path=path, body=body, read=lambda document: document)


def chat(judge: FeedbackMethods[R], prompt: Prompt, options: ChatOptions) -> ApiCall[Answer[R]]:
    """Return the call of a chat."""
    return ApiCall(
        method="POST",
        path="/v1/chat/completions",
        body=chat_body(prompt, options),
        read=partial(answer_from, judge),
    )


def streamed_chat(prompt: Prompt, options: ChatOptions) -> ApiCall[None]:
    """Return the call of a streamed chat; an `AnswerReader` takes its lines."""
    streaming = {"stream": True, "stream_options": {"include_usage": True}}
    return ApiCall(
        method="POST",
        path="/v1/chat/completions",
        body=chat_body(prompt, options) | streaming,
        read=lambda _: None,
    )


def chat_body(prompt: Prompt, options: ChatOptions) -> dict[str, Any]:
    """Return the JSON body of a chat."""
    body: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    system, train = body.pop("system", None), body.pop("train", None)
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    if train is not None:
        body["metadata"] = {**body.get("metadata", {}), "train": train}
    return body | {"messages": messages}


def give(body: FeedbackBody, user: str | None) -> ApiCall[Receipt]:
    """Return the call that sends one feedback."""
    return ApiCall(
        method="POST",
        path="/v1/feedback",
        body=with_id(body, user),
        read=partial(record_from, Receipt),
    )


def send_signal(signal: SignalBody, user: str | None) -> ApiCall[Receipt]:
    """Return the call that sends one signal."""
    default: dict[str, Any] = {} if user is None else {"user": user}
    return ApiCall(
        method="POST",
        path="/v1/signals",
        body={"signals": [{**default, **signal}]},
        read=lambda document: record_from(Receipt, document["data"][0]),
    )


def batches(
    bodies: Sequence[FeedbackBody], user: str | None
) -> Iterator[ApiCall[list[Receipt | TuneloopError]]]:
    """Yield calls that send many bodies, at most 1000 each."""
    for start in range(0, len(bodies), LARGEST_BATCH):
        batch = [with_id(body, user) for body in bodies[start : start + LARGEST_BATCH]]
        yield ApiCall(
            method="POST", path="/v1/feedback/batch", body={"feedback": batch}, read=outcomes
        )


def outcomes(document: FeedbackBatchResult) -> list[Receipt | TuneloopError]:
    """Return the receipt or the error of each body of a batch."""
    return [
        record_from(Receipt, item)
        if "id" in item
        else error_from_document(item["error"], item["status_code"])
        for item in document["data"]
    ]


def retract(feedback: Identified | str) -> ApiCall[Receipt]:
    """Return the call that retracts feedback, by its id or its signed receipt, which has a dot."""
    name = id_of(feedback)
    path = receipt_path(name) if "." in name else feedback_path(name)
    return ApiCall(method="DELETE", path=path, read=partial(record_from, Receipt))


def get_feedback(feedback: Identified | str) -> ApiCall[FeedbackItem]:
    """Return the call that reads one feedback."""
    return ApiCall(
        method="GET", path=feedback_path(feedback), read=partial(record_from, FeedbackItem)
    )


def get_receipt(receipt: Receipt | str) -> ApiCall[FeedbackReach]:
    """Return the call that reads what became of feedback."""
    path = receipt_path(receipt if isinstance(receipt, str) else receipt.receipt)
    return ApiCall(method="GET", path=path, read=partial(record_from, FeedbackReach))


def feedback_path(feedback: Identified | str) -> str:
    return f"/v1/feedback/{quote(id_of(feedback), safe='')}"


def receipt_path(receipt: str) -> str:
    return f"/v1/receipts/{quote(receipt, safe='')}"


def list_feedback(filters: Filters) -> ApiCall[FeedbackPage]:
    """Return the call that reads a page of feedback."""
    return ApiCall(method="GET", path="/v1/feedback", params=filters, read=page_from)


def policies(limit: int, before: int | None) -> ApiCall[Policies]:
    """Return the call that lists the newest versions."""
    params = {"limit": limit, "before": before}
    return ApiCall(method="GET", path="/v1/policies", params=params, read=policies_from)


def policy(version: int) -> ApiCall[PolicyVersion]:
    """Return the call that reads one version."""
    path = f"/v1/policies/{version}"
    return ApiCall(method="GET", path=path, read=partial(record_from, PolicyVersion))


def promote(version: int) -> ApiCall[int]:
    """Return the call that makes a version serve."""
    return ApiCall(method="POST", path=f"/v1/policies/{version}/promote", read=stable_version)


def roll_back(version: int | None) -> ApiCall[int]:
    """Return the call that rolls back."""
    body = {} if version is None else {"policy_version": version}
    return ApiCall(method="POST", path="/v1/policies/rollback", body=body, read=stable_version)


def stable_version(document: Activated) -> int:
    return int(document["policy_version"])


def score(prompt: Prompt, completions: Sequence[str]) -> ApiCall[Scores]:
    """Return the call that scores completions of one prompt."""
    asked = {"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}
    body = {**asked, "completions": list(completions)}
    return ApiCall(method="POST", path="/v1/score", body=body, read=partial(record_from, Scores))
