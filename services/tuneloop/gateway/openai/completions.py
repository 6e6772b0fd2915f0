"""`POST /v1/completions`: plain text or token ids, one prompt or several."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from tuneloop.api.openai import Completion
from tuneloop.gateway.context import gateway_of
from tuneloop.gateway.edge.caller import caller_of
from tuneloop.gateway.edge.recording import run_until_disconnected
from tuneloop.gateway.openai.calls import text_answer
from tuneloop.gateway.openai.chunks import ChunkForm, ChunkWriter, text_logprobs
from tuneloop.gateway.openai.collect import collect, whole_response
from tuneloop.gateway.openai.schemas import CompletionRequest
from tuneloop.gateway.openai.sessions import session_of
from tuneloop.gateway.openai.sse import EventStream
from tuneloop.gateway.openai.training import may_train

router = APIRouter(tags=["OpenAI"])

text_chunks = ChunkForm(
    object_name="text_completion",
    opening=None,
    piece='"text":%s',
    closing='"text":""',
    logprobs=text_logprobs,
)


@router.post("/v1/completions", response_model=Completion)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Complete plain prompts, whole or as a stream."""
    gateway = gateway_of(request)
    train = may_train(gateway.settings, body, request.headers)
    session_id = session_of(body.session_id, body.metadata, request.headers)
    key_id = caller_of(request).id
    answer = text_answer(gateway, body, train=train, key_id=key_id, session_id=session_id)
    with_logprobs = body.logprobs is not None
    if body.stream:
        writer = ChunkWriter(
            answer, gateway.settings.policy, text_chunks, body.include_usage, with_logprobs
        )
        return EventStream(gateway, answer, writer)
    return whole_response(
        gateway,
        answer,
        await run_until_disconnected(request.receive, collect(gateway, answer)),
        object_name="text_completion",
        members=lambda choice: {"text": choice.text},
        logprobs=text_logprobs if with_logprobs else None,
    )
