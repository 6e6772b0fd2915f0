"""`POST /v1/responses`: a chat in the form of OpenAI's Responses."""

from collections.abc import Sequence

from fastapi import APIRouter, Request
from pydantic import TypeAdapter
from starlette.responses import Response

from tuneloop.api.openai import OpenAIResponse, OutputItem
from tuneloop.errors import NotFound
from tuneloop.gateway.context import Gateway, gateway_of
from tuneloop.gateway.edge.caller import caller_of
from tuneloop.gateway.edge.recording import run_until_disconnected
from tuneloop.gateway.openai.calls import chat_answer
from tuneloop.gateway.openai.collect import collect
from tuneloop.gateway.openai.schemas import read_chat
from tuneloop.gateway.openai.sessions import session_of
from tuneloop.gateway.openai.sse import EventStream
from tuneloop.gateway.openai.training import may_train
from tuneloop.gateway.responses.answers import EventWriter, begun_response, whole_response
from tuneloop.gateway.responses.conversations import Conversation
from tuneloop.gateway.responses.items import InputItem, chat_messages
from tuneloop.gateway.responses.requests import ResponsesRequest

router = APIRouter(tags=["OpenAI"])

items = TypeAdapter(list[InputItem])


@router.post("/v1/responses", response_model=OpenAIResponse)
async def create_response(body: ResponsesRequest, request: Request) -> Response:
    """Answer a conversation, or go on with one, whole or as a stream."""
    gateway, key_id = gateway_of(request), caller_of(request).id
    previous = None
    if body.previous_response_id is not None:
        previous = gateway.conversations.find(key_id, body.previous_response_id)
    before = previous.messages if previous else ()
    body, named_last = resolve_references(body, gateway, key_id)
    # Who names items of an answer goes on from it, as who names the answer does.
    previous = previous or named_last
    chat = read_chat(body.chat_fields(before))
    named = session_of(chat.session_id, chat.metadata, request.headers)
    answer = chat_answer(
        gateway,
        chat,
        train=may_train(gateway.settings, chat, request.headers),
        key_id=key_id,
        session_id=named or (previous.session_id if previous else ""),
        prefix="resp",
    )
    [asked] = answer.requests
    if body.may_be_continued and not asked.session_id:
        # Turns that go on from here are of one session, which is called as its first turn.
        asked.session_id = answer.completion_id

    def keep(output: Sequence[OutputItem]) -> None:
        if not body.may_be_continued:
            return
        answered = items.validate_python(output)
        conversation = Conversation(
            messages=(*before, *chat_messages([*body.input, *answered])),
            session_id=asked.session_id,
            user_hash=asked.user_hash,
            items={given["id"]: item for given, item in zip(output, answered, strict=True)},
        )
        gateway.conversations.keep(key_id, answer.completion_id, conversation)

    begun = begun_response(answer, body, gateway.settings.policy)
    if body.stream:
        return EventStream(gateway, answer, EventWriter(begun, answer, keep))
    [choice] = await run_until_disconnected(request.receive, collect(gateway, answer))
    return whole_response(begun, answer, choice, keep)


def resolve_references(
    body: ResponsesRequest, gateway: Gateway, key_id: str
) -> tuple[ResponsesRequest, Conversation | None]:
    """Return the body with items in the place of references, and what the last of them ended.

    Raises `ItemNotFound`.
    """
    found: list[InputItem] = []
    last = None
    for item in body.input:
        if item.type == "item_reference" and item.id is not None:
            last = gateway.conversations.of_item(key_id, item.id)
            found.append(last.items[item.id])
        else:
            found.append(item)
    return (body.model_copy(update={"input": found}) if last else body), last


@router.api_route(
    "/v1/responses/{rest:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False
)
async def refuse_others(rest: str) -> Response:
    """Refuse whatever needs responses to be stored."""
    raise NotFound(
        "responses cannot be read, deleted, cancelled or counted here: POST /v1/responses is all "
        "there is"
    )
