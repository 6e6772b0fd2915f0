"""The Python client of a running service: answers, and feedback on them.

    client = Client()
    completion = client.chat("What is the capital of France?")
    completion.thumb("up")

`AsyncClient` has the same methods as coroutines. Failures are the errors of `tuneloop.errors`, with
the service's own message, `param`, `reason` and `retry_after`.
"""

from tuneloop.client.answers import Answer, AsyncCompletion, Choice, Completion, Piece, Usage
from tuneloop.client.asynchronous import AsyncClient, AsyncStream
from tuneloop.client.calls import ChatOptions, Filters
from tuneloop.client.judging import Details, FeedbackBody, Receipt, SessionDetails, SignalBody
from tuneloop.client.records import (
    FeedbackItem,
    FeedbackPage,
    FeedbackReach,
    Policies,
    PolicyVersion,
    Scores,
)
from tuneloop.client.synchronous import Client, Stream

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncCompletion",
    "AsyncStream",
    "ChatOptions",
    "Choice",
    "Client",
    "Completion",
    "Details",
    "FeedbackBody",
    "FeedbackItem",
    "FeedbackPage",
    "FeedbackReach",
    "Filters",
    "Piece",
    "Policies",
    "PolicyVersion",
    "Receipt",
    "Scores",
    "SessionDetails",
    "SignalBody",
    "Stream",
    "Usage",
]
