"""A completion while it is sampled, and the events that a caller gets."""

from dataclasses import dataclass, field, replace

from tuneloop.generation.engine import EngineOutput, TokenCandidate
from tuneloop.generation.formats.answer import AnswerReader
from tuneloop.generation.formats.tool_calls import ToolCallDelta, ToolParser
from tuneloop.rollouts import FinishReason, PolicyVersionSpan

no_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What was added to one completion."""

    index: int
    text: str
    """Of the answer, without the parts that were parsed as tool calls."""
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[TokenCandidate, ...], ...]
    """Empty unless asked for."""
    policy_version: int
    tool_calls: tuple[ToolCallDelta, ...] = ()
    reasoning: str = ""
    """Text of the thought."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Final:
    """The end of one completion."""

    index: int
    completion_id: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version_spans: tuple[PolicyVersionSpan, ...]
    policy_version: int
    prompt_tokens: int
    stop_sequence: str = ""
    """The stop string that ended it; empty if none did."""
    reasoning_tokens: int = 0
    """How many of the first tokens are its thought."""
    candidate_text: str = ""
    """Of a candidate, its text as its rollout has it."""


@dataclass(slots=True)
class PartialCompletion:
    """One completion while it is sampled."""

    index: int
    last_time: float
    parser: ToolParser | None = None
    reader: AnswerReader | None = None
    """Reads the tokens of a model that thinks, calls included; None: the engine's text is used."""
    text: str = ""
    """The answer, with its calls as they were sampled."""
    reasoning: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finished: bool = False

    @property
    def reasoning_tokens(self) -> int:
        """How many of the first tokens are the thought."""
        return self.reader.reasoning_tokens if self.reader else 0

    def add(self, output: EngineOutput, version: int) -> tuple[EngineOutput, Delta]:
        """Append an output sampled by `version`; return it and what it adds.

        It is returned as it counts: shorter, and the last one, where a stop string ended the
        answer.
        """
        reasoning, sampled = "", output.text
        text, calls = sampled, no_calls
        if self.reader is not None:
            reading = self.reader.read(output.token_ids, output.finish_reason)
            reasoning, sampled = reading.reasoning, reading.answer
            text, calls = reading.text, reading.tool_calls
            if self.reader.stopped_by:
                output = end_by_stop_string(output, reading.tokens, self.reader.stopped_by)
        elif self.parser is not None:
            ends = output.finish_reason is not None
            text, calls = self.parser.feed(output.text, output.token_ids, ends=ends)
        self.text += sampled
        self.reasoning += reasoning
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        self.versions += [version] * len(output.token_ids)
        return output, Delta(
            index=output.index,
            text=text,
            token_ids=output.token_ids,
            logprobs=output.logprobs,
            top_logprobs=output.top_logprobs,
            policy_version=version,
            tool_calls=calls,
            reasoning=reasoning,
        )


def end_by_stop_string(output: EngineOutput, tokens: int, stop: str) -> EngineOutput:
    """Return an output up to the token that completed a stop string."""
    return replace(
        output,
        token_ids=output.token_ids[:tokens],
        logprobs=output.logprobs[:tokens],
        top_logprobs=output.top_logprobs[:tokens],
        finish_reason=FinishReason.STOP,
        stop_sequence=stop,
        policy_version_spans=(),
    )
