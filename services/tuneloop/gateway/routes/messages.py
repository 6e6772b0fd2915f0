"""`POST /v1/messages`, and how many tokens one would have: a chat in Anthropic's form."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from tuneloop.api.anthropic import AnthropicMessage, TokenCount
from tuneloop.gateway.anthropic.answers import EventWriter, thought_display, whole_message
from tuneloop.gateway.anthropic.requests import MessagesRequest, TokenCountRequest
from tuneloop.gateway.context import gateway_of
from tuneloop.gateway.edge.caller import caller_of
from tuneloop.gateway.edge.recording import run_until_disconnected
from tuneloop.gateway.openai.calls import chat_answer
from tuneloop.gateway.openai.collect import collect
from tuneloop.gateway.openai.schemas import read_chat
from tuneloop.gateway.openai.sessions import session_of
from tuneloop.gateway.openai.sse import EventStream
from tuneloop.gateway.openai.training import may_train
from tuneloop.rpc.status import reply_of
from tuneloop.v1 import generation_pb2

router = APIRouter(tags=["Anthropic"])


@router.post("/v1/messages", response_model=AnthropicMessage)
async def create_message(body: MessagesRequest, request: Request) -> Response:
    """Answer a conversation, whole or as a stream."""
    gateway = gateway_of(request)
    chat = read_chat(body.chat_fields())
    answer = chat_answer(
        gateway,
        chat,
        train=may_train(gateway.settings, chat, request.headers),
        key_id=caller_of(request).id,
        session_id=session_of(chat.session_id, chat.metadata, request.headers),
    )
    # Every request must name a limit here, so clients name the most that any model takes.
    answer.requests[0].clip_max_tokens = True
    model = gateway.settings.policy
    if body.stream:
        return EventStream(gateway, answer, EventWriter(answer, model, thought_display(body)))
    [choice] = await run_until_disconnected(request.receive, collect(gateway, answer))
    return whole_message(answer, model, choice, thought_display(body))


@router.post("/v1/messages/count_tokens")
async def count_tokens(body: TokenCountRequest, request: Request) -> TokenCount:
    """Return the tokens of a conversation, with those of its tools and of the chat template."""
    gateway, key_id = gateway_of(request), caller_of(request).id
    [asked] = chat_answer(
        gateway, read_chat(body.chat_fields()), train=False, key_id=key_id
    ).requests
    question = generation_pb2.CountTokensRequest(
        policy=asked.policy,
        chat=asked.chat,
        tool_use=asked.tool_use if asked.HasField("tool_use") else None,
        api_key_id=key_id,
        template_options=asked.template_options,
    )
    timeout = gateway.settings.request_timeout_seconds
    count: generation_pb2.CountTokensResponse = await reply_of(
        gateway.generation.CountTokens(question, timeout=timeout)
    )
    return {"input_tokens": count.prompt_tokens}
