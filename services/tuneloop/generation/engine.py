"""The protocol of an engine, with two implementations and one contract suite for both.

`generation.vllm` is for production, `generation.transformers` for machines without vLLM and for
fast tests.
"""

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from tuneloop.errors import InvalidRequest
from tuneloop.generation.formats.reasoning import ReasoningFormat
from tuneloop.generation.formats.tool_calls import ToolFormat
from tuneloop.policies import WeightsKind
from tuneloop.rollouts import FinishReason, PolicyVersionSpan, SamplingParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One prompt to complete `sampling.n` times with one version."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParameters
    """A structural tag beside a JSON schema stands for it."""
    policy_version: int
    """0 is the base model. With full weights the engine samples from the version it holds."""
    adapter: int = 0
    """LoRA: the number the version was loaded by; 0 for the base model."""
    with_tools: bool = False
    """Tool calls are parsed from the text: tags that are special tokens must stay in it."""
    as_tokens: bool = False
    """Only token ids are wanted: the text of outputs may be empty, and `stop` is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCandidate:
    """A token and its natural log-prob."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOutput:
    """What was added to completion `index` since its last output; the final one has a reason."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """As sampled: after temperature, top-k and top-p. One per token id."""
    top_logprobs: tuple[tuple[TokenCandidate, ...], ...]
    """Best first, for each of `token_ids`; empty unless asked for."""
    finish_reason: FinishReason | None = None
    stop_sequence: str = ""
    """The stop string that ended it; empty if none did."""
    policy_version_spans: tuple[PolicyVersionSpan, ...] = ()
    """Set on the last output: which version sampled which of all the tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """The limits of a request."""

    max_model_len: int
    """The most tokens in prompt and completion together."""
    vocab_size: int
    max_logprobs: int


class Engine(Protocol):
    """Samples completions from versions, and loads new versions meanwhile."""

    name: str
    weights_kind: WeightsKind

    async def start(self) -> EngineLimits:
        """Load the base model (version 0) and be ready."""
        ...

    async def stop(self) -> None:
        """Abort running requests and free everything."""
        ...

    async def wait_for_failure(self) -> str:
        """Wait until the engine can never answer again; return the reason."""
        ...

    def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
        """Stream outputs; closing the iterator aborts the request in the engine.

        Raises `InvalidRequest` for what is beyond the limits (`check_limits`) before any output.
        """
        ...

    def tool_format(self, name: str) -> ToolFormat:
        """Return the named format of tool calls. Raises `SettingsError` for an unknown name."""
        ...

    def reasoning_format(self, name: str) -> ReasoningFormat:
        """Return the named format of thoughts. Raises `SettingsError` for an unknown name."""
        ...

    async def load_adapter(self, adapter: int, folder: Path) -> float:
        """LoRA: make a version available beside the others, without pausing running requests.

        A number, 1 or more, always stands for the same weights. Returns the seconds in which
        nothing could be sampled. Raises `WeightsRefused` if they do not fit; then nothing changes.
        """
        ...

    async def drop_adapter(self, adapter: int) -> None:
        """LoRA: unload a version that no request holds."""
        ...

    async def load_full_weights(
        self, policy_version: int, folder: Path, sha256: Mapping[str, str]
    ) -> float:
        """Full weights: replace the weights in place; requests in flight continue on the new ones.

        `sha256` has the hashes of the files by name, and none for version 0. Returns the seconds in
        which nothing could be sampled. Raises `WeightsRefused` if the files do not fit or their
        hashes are others; then nothing changes.
        """
        ...


def grammar_problem(error: Exception) -> str:
    """Return xgrammar's message about a grammar, without the place in its sources."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", lines[-1])


def clip_max_tokens(
    prompt_token_ids: Sequence[int], sampling: SamplingParameters, limits: EngineLimits
) -> SamplingParameters:
    """Lower `max_tokens` to the room there is, for a caller who named no limit."""
    room = max(1, limits.max_model_len - len(prompt_token_ids))
    return replace(sampling, max_tokens=min(sampling.max_tokens, room))


def check_prompt_length(tokens: int, limits: EngineLimits) -> None:
    """Raise `InvalidRequest` if the prompt is empty or leaves no room for a completion."""
    if not tokens:
        raise InvalidRequest("the prompt is empty", param="messages")
    if tokens >= limits.max_model_len:
        raise InvalidRequest(
            f"the prompt has {tokens} tokens; this model takes {limits.max_model_len} in prompt "
            "and completion together",
            param="messages",
        )


def check_limits(
    prompt_token_ids: Sequence[int], sampling: SamplingParameters, limits: EngineLimits
) -> None:
    """Raise `InvalidRequest` if the model cannot serve the request; every engine calls it once."""
    check_prompt_length(len(prompt_token_ids), limits)
    room = limits.max_model_len - len(prompt_token_ids)
    if sampling.max_tokens > room:
        raise InvalidRequest(
            f"max_tokens is {sampling.max_tokens}, but only {room} fit after a prompt of "
            f"{len(prompt_token_ids)} tokens",
            param="max_tokens",
        )
    unknown = [t for t in prompt_token_ids if not 0 <= t < limits.vocab_size]
    if unknown:
        raise InvalidRequest(f"token id {unknown[0]} is not in the vocabulary", param="prompt")
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < limits.vocab_size or not -100 <= bias <= 100:
            raise InvalidRequest(
                f"logit_bias: {token}: {bias} must name a token of the vocabulary and lie from "
                "-100 to 100",
                param="logit_bias",
            )
    if (sampling.top_logprobs or 0) > limits.max_logprobs:
        raise InvalidRequest(
            f"top_logprobs is {sampling.top_logprobs}; at most {limits.max_logprobs}",
            param="top_logprobs",
        )
