"""Puts a span around each answer, by OpenTelemetry's conventions for generative AI.

https://github.com/open-telemetry/semantic-conventions-genai: the span of an inference. Prompts and
completions are opt-in there, and not recorded here.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from tuneloop import tracing
from tuneloop.gateway.openai.calls import GeneratedAnswer


@contextmanager
def answer_span(answer: GeneratedAnswer, *, stream: bool) -> Iterator[None]:
    """Put a span around the generation of an answer, of one task; it ends with what was used."""
    if not tracing.is_on():
        yield
        return
    attributes = request_attributes(answer, stream=stream)
    name = f"{attributes['gen_ai.operation.name']} {attributes['gen_ai.request.model']}"
    with tracing.span(name, kind="client", attributes=attributes):
        try:
            yield
        finally:
            tracing.annotate(response_attributes(answer, stream=stream))


def request_attributes(answer: GeneratedAnswer, *, stream: bool) -> dict[str, tracing.Attribute]:
    """Return what was asked for, with this service's defaults."""
    request = answer.requests[0]
    sampling = request.sampling
    attributes: dict[str, tracing.Attribute] = {
        **tracing.PROVIDER,
        "gen_ai.operation.name": "chat" if request.HasField("chat") else "text_completion",
        "gen_ai.request.model": request.policy,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
    }
    if stream:
        attributes["gen_ai.request.stream"] = True
    if request.session_id:
        attributes["gen_ai.conversation.id"] = request.session_id
    if sampling.json_schema:
        attributes["gen_ai.output.type"] = "json"
    if sampling.HasField("seed"):
        attributes["gen_ai.request.seed"] = sampling.seed
    if sampling.top_k:
        attributes["gen_ai.request.top_k"] = float(sampling.top_k)
    if answer.n > 1:
        attributes["gen_ai.request.choice.count"] = answer.n
    if sampling.stop:
        attributes["gen_ai.request.stop_sequences"] = list(sampling.stop)
    if sampling.frequency_penalty:
        attributes["gen_ai.request.frequency_penalty"] = sampling.frequency_penalty
    if sampling.presence_penalty:
        attributes["gen_ai.request.presence_penalty"] = sampling.presence_penalty
    return attributes


def response_attributes(answer: GeneratedAnswer, *, stream: bool) -> dict[str, tracing.Attribute]:
    """Return what the answer was made by and how much it took, as far as it got."""
    attributes: dict[str, tracing.Attribute] = {"gen_ai.response.id": answer.completion_id}
    if answer.policy_version is not None:
        attributes["gen_ai.response.model"] = answer.requests[0].policy
        attributes["tuneloop.policy_version"] = answer.policy_version
    if stream and answer.first_token_seconds is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = answer.first_token_seconds
    if answer.finished:
        attributes |= {
            "gen_ai.response.finish_reasons": [r for _, r in sorted(answer.finished.items())],
            "gen_ai.usage.input_tokens": answer.prompt_tokens,
            "gen_ai.usage.output_tokens": answer.completion_tokens,
        }
        if answer.reasoning_tokens:
            attributes["gen_ai.usage.reasoning.output_tokens"] = answer.reasoning_tokens
    return attributes
