"""Whole answers, collected from the same events as a stream."""

from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse

from tuneloop.api.openai import ToolCall
from tuneloop.gateway import metrics
from tuneloop.gateway.context import Gateway
from tuneloop.gateway.openai.calls import GeneratedAnswer, finish_reason
from tuneloop.gateway.openai.candidates import answer_events
from tuneloop.gateway.openai.chunks import Logprobs, version_spans
from tuneloop.gateway.openai.tracing import answer_span
from tuneloop.v1 import generation_pb2


@dataclass(slots=True)
class WholeChoice:
    """One choice, complete or not."""

    pieces: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    positions: list[generation_pb2.PositionLogprobs] = field(default_factory=list)
    calls: dict[int, ToolCall] = field(default_factory=dict)
    """Calls of functions in OpenAI's form, by their index."""
    final: generation_pb2.GenerateFinal = field(default_factory=generation_pb2.GenerateFinal)

    def add_call(self, delta: generation_pb2.ToolCallDelta) -> None:
        """Start a call, or add to its arguments."""
        call = self.calls.setdefault(
            delta.index,
            {
                "id": delta.call_id,
                "type": "function",
                "function": {"name": delta.name, "arguments": ""},
            },
        )
        call["function"]["arguments"] += delta.arguments

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.pieces)

    @property
    def reasoning(self) -> str:
        """The thought so far."""
        return "".join(self.thoughts)


async def collect(gateway: Gateway, answer: GeneratedAnswer) -> list[WholeChoice]:
    """Generate the answer and return its choices."""
    choices = [WholeChoice() for _ in range(answer.choices)]
    stream = answer_events(gateway, answer)
    with answer_span(answer, stream=False):
        async with aclosing(stream):
            async for index, event in stream:
                choice = choices[index]
                if event.WhichOneof("event") == "delta":
                    choice.pieces.append(event.delta.text)
                    choice.thoughts.append(event.delta.reasoning)
                    choice.positions.extend(event.delta.logprobs)
                    for call in event.delta.tool_calls:
                        choice.add_call(call)
                else:
                    choice.final = event.final
    tokens = sum(choice.final.usage.completion_tokens for choice in choices)
    metrics.completion_tokens.labels("false").inc(tokens)
    return choices


def whole_response(
    gateway: Gateway,
    answer: GeneratedAnswer,
    choices: list[WholeChoice],
    *,
    object_name: str,
    members: Callable[[WholeChoice], Mapping[str, Any]],
    logprobs: Logprobs | None,
) -> JSONResponse:
    """Return the HTTP response; `members` returns those of a choice, `logprobs` may be None."""
    # The version that sampled the last token, as in each chunk.
    version = choices[0].final.policy_version
    document = {
        "id": answer.completion_id,
        "object": object_name,
        "created": answer.created,
        "model": gateway.settings.policy,
        "policy_version": version,
        "choices": [
            choice_document(answer, index, choice, members, logprobs)
            for index, choice in enumerate(choices)
        ],
        "usage": answer.usage(),
    }
    if answer.best_of is not None:
        document["best_of"] = answer.best_of
    # Some clients keep the headers of a response, but not its id.
    headers = {"x-policy-version": str(version), "x-completion-id": answer.completion_id}
    return JSONResponse(document, headers=headers)


def choice_document(
    answer: GeneratedAnswer,
    index: int,
    choice: WholeChoice,
    members: Callable[[WholeChoice], Mapping[str, Any]],
    logprobs: Logprobs | None,
) -> dict[str, Any]:
    document = {
        "index": index,
        "completion_id": answer.completion_id_of(index),
        **members(choice),
        "logprobs": None if logprobs is None else logprobs(choice.positions, 0),
        "finish_reason": finish_reason(choice.final.finish_reason, called=bool(choice.calls)),
    }
    spans = version_spans(choice.final)
    return document if spans is None else document | {"policy_version_spans": spans}
