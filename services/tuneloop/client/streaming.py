"""Reads a streamed answer line by line, without I/O."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic

from tuneloop.api.openai import ChatCompletionChunk, Usage
from tuneloop.client.answers import Answer, Choice, Piece, answer_of
from tuneloop.client.exceptions import error_from_document
from tuneloop.client.judging import FeedbackMethods, R
from tuneloop.errors import CorruptData, FailedPrecondition, Unavailable


@dataclass(slots=True)
class PartialAnswer:
    """A choice whose answer is still being written."""

    id: str
    policy_version: int = 0
    pieces: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    logprobs: dict[str, list[Any]] = field(default_factory=dict)
    finish_reason: str | None = None

    def add_chunk(self, choice: Mapping[str, Any], version: int) -> tuple[str, str]:
        """Add one chunk of the choice, and return its text and what it adds to the thought."""
        self.policy_version = version
        self.finish_reason = choice["finish_reason"] or self.finish_reason
        for name, positions in (choice.get("logprobs") or {}).items():
            self.logprobs.setdefault(name, []).extend(positions or [])
        delta = choice["delta"]
        for call in delta.get("tool_calls") or []:
            merge_delta(self.tool_calls.setdefault(call["index"], {}), call)
        text = delta.get("content") or ""
        self.pieces.append(text)
        thought = delta.get("reasoning_content") or ""
        self.thoughts.append(thought)
        return text, thought

    def message(self) -> dict[str, Any]:
        """Return the assistant's turn so far."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.pieces)}
        if thought := "".join(self.thoughts):
            message["reasoning_content"] = thought
        if self.tool_calls:
            message["tool_calls"] = [
                {name: value for name, value in call.items() if name != "index"}
                for _, call in sorted(self.tool_calls.items())
            ]
        return message


def merge_delta(call: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """Add a tool call's delta: its arguments come in pieces, the rest comes once."""
    for name, value in delta.items():
        if isinstance(value, Mapping):
            merge_delta(call.setdefault(name, {}), value)
        elif name == "arguments":
            call[name] = call.get(name, "") + value
        elif value is not None:
            call[name] = value


class AnswerReader(Generic[R]):
    """Turns the lines of a stream into pieces, and keeps the answer so far."""

    def __init__(self, judge: FeedbackMethods[R]) -> None:
        self._judge = judge
        self._choices: dict[int, PartialAnswer] = {}
        self._model = ""
        self._usage: Usage | None = None
        self.done = False

    def feed(self, line: str) -> Iterator[Piece]:
        """Yield the pieces of one line. Raises the error that the service sent in the stream."""
        if line == "data: [DONE]":
            self.done = True
        if self.done or not line.startswith("data: "):
            return
        try:
            document = json.loads(line.removeprefix("data: "))
            if "error" in document:
                raise error_from_document(document["error"])
            yield from self._take(document)
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptData(f"not a chunk of a tuneloop stream: {line[:200]!r}") from error

    def _take(self, chunk: ChatCompletionChunk) -> Iterator[Piece]:
        self._model, version = chunk["model"], chunk["policy_version"]
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk["choices"]:
            index = choice["index"]
            partial = self._choices.setdefault(index, PartialAnswer(choice["completion_id"]))
            text, thought = partial.add_chunk(choice, version)
            if text or thought:
                yield Piece(text=text, reasoning=thought, index=index, policy_version=version)

    def end(self) -> None:
        """Raise `Unavailable` if the stream ended before the answer did."""
        if not self.done:
            raise Unavailable("the stream ended before the answer did: send the request again")

    @property
    def answer(self) -> Answer[R]:
        """The answer so far. Raises `FailedPrecondition` before its first piece."""
        if not self._choices:
            raise FailedPrecondition("the answer has not started: iterate over the stream first")
        choices = [self._choice(index) for index in sorted(self._choices)]
        return answer_of(self._judge, choices, self._model, self._usage)

    def _choice(self, index: int) -> Choice[R]:
        partial = self._choices[index]
        message = partial.message()
        return Choice(
            id=partial.id,
            text=message["content"],
            policy_version=partial.policy_version,
            finish_reason=partial.finish_reason,
            index=index,
            reasoning=message.get("reasoning_content", ""),
            message=message,
            logprobs=partial.logprobs or None,
            judge=self._judge,
        )
