"""A completion while it is sampled, and the events that a caller gets."""

from dataclasses import dataclass, field

from tuneloop.generation.engine import EngineOutput, TokenCandidate
from tuneloop.generation.tool_calls import ToolCallDelta, ToolParser
from tuneloop.rollouts import FinishReason, PolicyVersionSpan

no_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What was added to one completion."""

    index: int
    text: str
    """Without the parts that were parsed as tool calls."""
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[TokenCandidate, ...], ...]
    """Empty unless asked for."""
    policy_version: int
    tool_calls: tuple[ToolCallDelta, ...] = ()


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
    candidate_text: str = ""
    """Of a candidate, its text as its rollout has it."""


@dataclass(slots=True)
class PartialCompletion:
    """One completion while it is sampled."""

    index: int
    last_time: float
    parser: ToolParser | None = None
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finished: bool = False

    def add(self, output: EngineOutput, version: int) -> Delta:
        """Append an output sampled by `version`; return what it adds."""
        self.text += output.text
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        self.versions += [version] * len(output.token_ids)
        text, calls = output.text, no_calls
        if self.parser is not None:
            ends = output.finish_reason is not None
            text, calls = self.parser.feed(output.text, output.token_ids, ends=ends)
        return Delta(
            index=output.index,
            text=text,
            token_ids=output.token_ids,
            logprobs=output.logprobs,
            top_logprobs=output.top_logprobs,
            policy_version=version,
            tool_calls=calls,
        )
