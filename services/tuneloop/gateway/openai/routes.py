"""`POST /v1/chat/completions`, and `POST /v1/completions` for plain text or token ids."""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from tuneloop.api.openai import AssistantMessage, ChatCompletion, Completion
from tuneloop.gateway.context import gateway_of
from tuneloop.gateway.edge.caller import caller_of
from tuneloop.gateway.edge.recording import run_until_disconnected
from tuneloop.gateway.open_webui.requests import is_open_webui, read_headers
from tuneloop.gateway.openai.calls import GeneratedAnswer, chat_answer, text_answer
from tuneloop.gateway.openai.chunks import ChunkForm, ChunkWriter, chat_logprobs, text_logprobs
from tuneloop.gateway.openai.collect import WholeChoice, collect, whole_response
from tuneloop.gateway.openai.schemas import ChatRequest, CompletionRequest, SamplingRequest
from tuneloop.gateway.openai.sessions import session_of
from tuneloop.gateway.openai.sse import EventStream
from tuneloop.gateway.openai.training import may_train

router = APIRouter(tags=["OpenAI"])

chat_chunks = ChunkForm(
    object_name="chat.completion.chunk",
    opening='"delta":{"role":"assistant","content":""}',
    piece='"delta":{"content":%s}',
    closing='"delta":{}',
    logprobs=lambda positions, _: chat_logprobs(positions),
)

text_chunks = ChunkForm(
    object_name="text_completion",
    opening=None,
    piece='"text":%s',
    closing='"text":""',
    logprobs=text_logprobs,
)


@router.post("/v1/chat/completions", response_model=ChatCompletion)
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation, whole or as a stream."""
    gateway, caller = gateway_of(request), caller_of(request)
    name = None
    if is_open_webui(gateway.settings, caller):
        body, name = read_headers(body, request.headers)
    train = may_train(gateway.settings, body, request.headers)
    session_id = session_of(body.session_id, body.metadata, request.headers)
    answer = chat_answer(
        gateway, body, train=train, key_id=caller.id, session_id=session_id, name=name
    )
    return await respond(
        request,
        body,
        answer,
        chat_chunks,
        with_logprobs=bool(body.logprobs),
        object_name="chat.completion",
        members=message,
    )


def message(choice: WholeChoice) -> dict[str, AssistantMessage]:
    """Return the message of a choice."""
    document: AssistantMessage = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.calls:
        document["content"] = choice.text or None
        document["tool_calls"] = list(choice.calls.values())
    if choice.reasoning:
        # DeepSeek's name, and vLLM's.
        document["reasoning_content"] = document["reasoning"] = choice.reasoning
    return {"message": document}


@router.post("/v1/completions", response_model=Completion)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Complete plain prompts, whole or as a stream."""
    gateway = gateway_of(request)
    train = may_train(gateway.settings, body, request.headers)
    session_id = session_of(body.session_id, body.metadata, request.headers)
    key_id = caller_of(request).id
    answer = text_answer(gateway, body, train=train, key_id=key_id, session_id=session_id)
    return await respond(
        request,
        body,
        answer,
        text_chunks,
        with_logprobs=body.logprobs is not None,
        object_name="text_completion",
        members=lambda choice: {"text": choice.text},
    )


async def respond(
    request: Request,
    body: SamplingRequest,
    answer: GeneratedAnswer,
    form: ChunkForm,
    *,
    with_logprobs: bool,
    object_name: str,
    members: Callable[[WholeChoice], Mapping[str, Any]],
) -> Response:
    """Generate the answer and return it, as chunks of `form` or whole."""
    gateway = gateway_of(request)
    if body.stream:
        writer = ChunkWriter(
            answer, gateway.settings.policy, form, body.include_usage, with_logprobs
        )
        return EventStream(gateway, answer, writer)
    return whole_response(
        gateway,
        answer,
        await run_until_disconnected(request.receive, collect(gateway, answer)),
        object_name=object_name,
        members=members,
        logprobs=form.logprobs if with_logprobs else None,
    )
