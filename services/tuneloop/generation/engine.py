"""What the generation service asks of an engine. Two implementations, one contract suite.

`vllm_engine` is for production, `transformers_engine` for machines without vLLM and fast tests.
"""

import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from tuneloop.errors import InvalidRequest
from tuneloop.generation.tool_calls import ToolFormat
from tuneloop.policies import WeightsKind
from tuneloop.rollouts import FinishReason, PolicyVersionSpan, SamplingParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One prompt to complete `sampling.n` times with one version."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParameters
    policy_version: int
    """0 is the base model. With full weights the engine samples from whatever it holds."""
    with_tools: bool = False
    """Calls of functions are read in the text: tags that are special tokens must stay in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCandidate:
    """A token and its natural log-prob."""

    token_id: int
    token: str
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOutput:
    """What was added to completion `index` since the last output; the last has a finish reason."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """As sampled: after temperature, top-k and top-p. One for each of `token_ids`."""
    top_logprobs: tuple[tuple[TokenCandidate, ...], ...]
    """Best first, for each of `token_ids`; empty unless asked for."""
    finish_reason: FinishReason | None = None
    policy_version_spans: tuple[PolicyVersionSpan, ...] = ()
    """Set on the last output: which version sampled which of all the tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What a request may ask for."""

    max_model_len: int
    """Most tokens in prompt and completion together."""
    vocab_size: int
    max_logprobs: int


class Engine(Protocol):
    """Samples completions from versions, and takes new versions while it does."""

    name: str
    weights_kind: WeightsKind

    async def start(self) -> EngineLimits:
        """Load the base model (version 0) and be ready."""
        ...

    async def stop(self) -> None:
        """Abort what runs and free everything."""
        ...

    async def failed(self) -> str:
        """Return, with the reason, when the engine can never answer again; until then wait."""
        ...

    def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
        """Stream outputs; closing the iterator aborts the request in the engine."""
        ...

    def tool_format(self, name: str) -> ToolFormat:
        """How the model spells calls of functions; raises `SettingsError` for an unknown name."""
        ...

    async def load_adapter(self, policy_version: int, folder: Path) -> None:
        """LoRA: make a version available beside the others, without pausing what runs.

        Raises `WeightsRefused` when it does not fit; the engine goes on as before.
        """
        ...

    async def drop_adapter(self, policy_version: int) -> None:
        """LoRA: forget a version that no request holds."""
        ...

    async def load_full_weights(self, policy_version: int, folder: Path) -> float:
        """Full weights: replace the weights in place; requests in flight continue on the new ones.

        Returns the seconds in which nothing could be sampled. Raises `WeightsRefused` when the
        files do not fit; the engine goes on as before.
        """
        ...


def grammar_problem(error: Exception) -> str:
    """What xgrammar says of a grammar, without the place in its sources."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", lines[-1])


def clip_max_tokens(
    prompt_token_ids: Sequence[int], sampling: SamplingParameters, limits: EngineLimits
) -> SamplingParameters:
    """`sampling` with `max_tokens` shortened to the room there is: the caller named no limit."""
    room = max(1, limits.max_model_len - len(prompt_token_ids))
    return replace(sampling, max_tokens=min(sampling.max_tokens, room))


def check_limits(
    prompt_token_ids: Sequence[int], sampling: SamplingParameters, limits: EngineLimits
) -> None:
    """Raise `InvalidRequest` when the model cannot serve the request."""
    if not prompt_token_ids:
        raise InvalidRequest("the prompt is empty", param="messages")
    room = limits.max_model_len - len(prompt_token_ids)
    if room < 1:
        raise InvalidRequest(
            f"the prompt has {len(prompt_token_ids)} tokens; this model takes "
            f"{limits.max_model_len} in prompt and completion together",
            param="messages",
        )
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
