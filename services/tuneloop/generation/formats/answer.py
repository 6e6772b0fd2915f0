"""Reads a completion token by token: its thought, its answer up to a stop string, its calls.

For models that think. The text is made here and not by the engine, so that thought and answer are
told apart at the token where one ends, and stop strings are looked for in the answer alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tuneloop.generation.formats.detokenization import Detokenizer, StopStrings
from tuneloop.generation.formats.reasoning import ReasoningParser
from tuneloop.generation.formats.tool_calls import ToolCallDelta, ToolParser
from tuneloop.rollouts import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What some tokens added."""

    tokens: int
    """How many of them belong to the completion: fewer where a stop string ended it before."""
    reasoning: str
    answer: str
    """The answer as it was sampled, calls included."""
    text: str
    """The answer without calls."""
    tool_calls: tuple[ToolCallDelta, ...]


class AnswerReader:
    """Reads one completion."""

    def __init__(
        self,
        detokenizer: Detokenizer,
        reasoning: ReasoningParser,
        tools: ToolParser | None,
        stop: Sequence[str],
        stop_token_ids: frozenset[int],
    ) -> None:
        self.detokenizer = detokenizer
        self.reasoning = reasoning
        self.tools = tools
        self.stops = StopStrings(stop=stop)
        self.stop_token_ids = stop_token_ids
        self.tokens = 0
        self.ended_by_token = False

    @property
    def stopped_by(self) -> str:
        """The stop string that ended the answer; empty: none so far."""
        return self.stops.stopped_by

    @property
    def reasoning_tokens(self) -> int:
        """How many leading tokens are the thought; all where it has not ended."""
        if self.reasoning.in_thought:
            return self.tokens
        return min(self.reasoning.thought_tokens, self.tokens - self.ended_by_token)

    def read(self, token_ids: Sequence[int], reason: FinishReason | None) -> Reading:
        """Read further tokens; with a reason they are the last."""
        thoughts: list[str] = []
        answers: list[str] = []
        answer_ids: list[int] = []
        read = 0
        for position, token in enumerate(token_ids, start=1):
            ends = reason is not None and position == len(token_ids)
            text = self.detokenizer.add(token, ends=ends)
            thought, answer = self.reasoning.feed(text, token, ends=ends)
            read = position
            thoughts.append(thought)
            answers.append(self.stops.add(answer, ends=ends))
            if not self.reasoning.in_thought:
                answer_ids.append(token)
            if self.stopped_by:
                break
        if reason is not None and not token_ids:
            thought, answer = self.reasoning.feed("", -1, ends=True)
            thoughts.append(thought)
            answers.append(self.stops.add(answer, ends=True))
        self.tokens += read
        self.ended_by_token = (
            reason is not None and bool(token_ids) and token_ids[-1] in self.stop_token_ids
        )
        sampled = text = "".join(answers)
        calls: tuple[ToolCallDelta, ...] = ()
        if self.tools is not None:
            ends = reason is not None or bool(self.stopped_by)
            text, calls = self.tools.feed(sampled, answer_ids, ends=ends)
        return Reading(
            tokens=read,
            reasoning="".join(thoughts),
            answer=sampled,
            text=text,
            tool_calls=calls,
        )
