"""Sampling parameters."""

from tuneloop.rollouts import SamplingParameters
from tuneloop.v1 import rollout_pb2
from tuneloop.wire.fields import json_object, require


def sampling_to_proto(sampling: SamplingParameters) -> rollout_pb2.SamplingParameters:
    """Sampling parameters."""
    return rollout_pb2.SamplingParameters(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        stop=sampling.stop,
        n=sampling.n,
        seed=sampling.seed,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        top_logprobs=sampling.top_logprobs,
        logit_bias=dict(sampling.logit_bias),
        json_schema=sampling.json_schema,
        structural_tag=sampling.structural_tag,
    )


def sampling_from_proto(message: rollout_pb2.SamplingParameters) -> SamplingParameters:
    """Sampling parameters; ranges are checked here, model limits by the engine."""
    require(0 <= message.temperature <= 2, "temperature", "must be from 0 to 2")
    require(0 < message.top_p <= 1, "top_p", "must be above 0 and at most 1")
    require(message.top_k >= 0, "top_k", "must be 0 (all) or more")
    require(message.max_tokens >= 1, "max_tokens", "must be at least 1")
    require(1 <= message.n <= 64, "n", "must be from 1 to 64")
    require(len(message.stop) <= 16, "stop", "at most 16 strings")
    require(all(message.stop), "stop", "strings must not be empty")
    require(-2 <= message.presence_penalty <= 2, "presence_penalty", "must be from -2 to 2")
    require(-2 <= message.frequency_penalty <= 2, "frequency_penalty", "must be from -2 to 2")
    require(
        not (message.json_schema and message.structural_tag),
        "response_format",
        "a JSON schema and a structural tag exclude each other",
    )
    if message.json_schema:
        json_object(message.json_schema, "response_format")
    if message.structural_tag:
        json_object(message.structural_tag, "structural_tag")
    top_logprobs = message.top_logprobs if message.HasField("top_logprobs") else None
    require(top_logprobs is None or 0 <= top_logprobs <= 20, "top_logprobs", "must be from 0 to 20")
    return SamplingParameters(
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=message.top_k,
        max_tokens=message.max_tokens,
        stop=tuple(message.stop),
        n=message.n,
        seed=message.seed if message.HasField("seed") else None,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        top_logprobs=top_logprobs,
        logit_bias=dict(message.logit_bias),
        json_schema=message.json_schema,
        structural_tag=message.structural_tag,
    )
