"""From an `EngineRequest` to vLLM's parameters, and from vLLM's outputs back."""

from collections.abc import Mapping
from typing import Any

from tuneloop.errors import Unavailable
from tuneloop.generation.engine import (
    EngineRequest,
    TokenCandidate,
)
from tuneloop.rollouts import FinishReason, SamplingParameters


def sampling_params(request: EngineRequest) -> Any:
    """Return vLLM's sampling parameters, always with log-probs of the sampled tokens."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = request.sampling

    return SamplingParams(
        n=sampling.n,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        stop=list(sampling.stop),
        seed=sampling.seed,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        logprobs=sampling.top_logprobs or 0,
        output_kind=RequestOutputKind.DELTA,
        structured_outputs=structured_outputs(sampling),
        skip_special_tokens=not request.with_tools,
    )


def structured_outputs(sampling: SamplingParameters) -> Any:
    """Return vLLM's description of what the completion must match, or None."""
    from vllm.sampling_params import StructuredOutputsParams

    if not sampling.constrained:
        return None
    return StructuredOutputsParams(
        json=sampling.json_schema or None, structural_tag=sampling.structural_tag or None
    )


def top_candidates(position: Mapping[int, Any], count: int | None) -> tuple[TokenCandidate, ...]:
    """Return the `count` most likely tokens of one position, best first."""
    ranked = sorted(position.items(), key=lambda item: -item[1].logprob)
    return tuple(
        TokenCandidate(token_id=token, logprob=entry.logprob)
        for token, entry in ranked[: count or 0]
        if entry.logprob > float("-inf")
    )


def finish_reason(reason: str | None) -> FinishReason | None:
    """Return the finish reason for vLLM's. Raises `Unavailable` for an error in the engine."""
    match reason:
        case None:
            return None
        case "stop" | "length" | "abort":
            return FinishReason(reason)
        case _:
            raise Unavailable(f"vLLM ended the completion with {reason!r}", retry_after=1.0)


def first_line(error: Exception) -> str:
    """Return the error in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
