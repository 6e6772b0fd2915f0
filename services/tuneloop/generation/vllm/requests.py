"""From an `EngineRequest` to vLLM's parameters, and from vLLM's outputs back."""

from collections.abc import Mapping
from typing import Any

from tuneloop.errors import Unavailable
from tuneloop.generation.engine import EngineOutput, EngineRequest, TokenCandidate
from tuneloop.policies import WeightsKind
from tuneloop.rollouts import FinishReason, PolicyVersionSpan, SamplingParameters


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
        detokenize=not request.as_tokens,
    )


def structured_outputs(sampling: SamplingParameters) -> Any:
    """Return vLLM's description of what the completion must match, or None."""
    from vllm.sampling_params import StructuredOutputsParams

    if not sampling.constrained:
        return None
    if sampling.structural_tag:
        return StructuredOutputsParams(structural_tag=sampling.structural_tag)
    return StructuredOutputsParams(json=sampling.json_schema)


def output_of(
    completion: Any, request: EngineRequest, tokens: int, kind: WeightsKind
) -> EngineOutput:
    """Convert one of vLLM's outputs; `tokens` is how many the completion has so far."""
    token_ids = tuple(completion.token_ids)
    positions = completion.logprobs or []
    top = request.sampling.top_logprobs
    # A stop string, or the id of a stop token.
    stopped_by = completion.stop_reason
    return EngineOutput(
        index=completion.index,
        text=completion.text,
        token_ids=token_ids,
        logprobs=tuple(
            position[token].logprob for position, token in zip(positions, token_ids, strict=True)
        ),
        top_logprobs=()
        if top is None
        else tuple(top_candidates(position, top) for position in positions),
        finish_reason=finish_reason(completion.finish_reason),
        stop_sequence=stopped_by if isinstance(stopped_by, str) else "",
        policy_version_spans=spans_of(completion, request, tokens, kind),
    )


def spans_of(
    completion: Any, request: EngineRequest, tokens: int, kind: WeightsKind
) -> tuple[PolicyVersionSpan, ...]:
    """Return which version sampled which tokens; empty before the end."""
    if completion.finish_reason is None or tokens == 0:
        return ()
    if kind is WeightsKind.LORA:
        version = request.policy_version
        return (PolicyVersionSpan(policy_version=version, start=0, end=tokens),)
    return tuple(
        PolicyVersionSpan(policy_version=int(span.version), start=span.start, end=span.end)
        for span in completion.weight_versions or ()
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
