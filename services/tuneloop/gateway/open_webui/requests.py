"""What Open WebUI says of a request in headers: its user, chat, message and task.

Its connection adds them (docs/open-webui.md), to side tasks as well. They are believed from the
callers in `TUNELOOP_GATEWAY_OPEN_WEBUI` alone: they name the user whom the answer was for, and the
id of the answer is made of them.
"""

from collections.abc import Mapping, Sequence

from tuneloop.gateway.edge.caller import LOCAL, Caller
from tuneloop.gateway.openai.schemas import ChatRequest, candidates_of
from tuneloop.gateway.settings import GatewaySettings
from tuneloop.text.messages import Message

USER = "x-openwebui-user-id"
CHAT = "x-openwebui-chat-id"
MESSAGE = "x-openwebui-message-id"
TASK = "x-openwebui-task"


def is_open_webui(settings: GatewaySettings, caller: Caller) -> bool:
    """Return whether the settings name the caller as an Open WebUI."""
    name = LOCAL.name if caller is LOCAL else caller.key_name
    return bool(name) and name in settings.open_webui


def read_headers(body: ChatRequest, headers: Mapping[str, str]) -> tuple[ChatRequest, str | None]:
    """Return the body with what the headers say, and the name of the answer, if it has one.

    A chat is a session, of which side tasks are no turns.

    Placeholders of Open WebUI that stand for nothing are empty headers.
    """
    changed: dict[str, object] = {}
    if user := headers.get(USER):
        changed["user"] = user
    chat, message, task = headers.get(CHAT), headers.get(MESSAGE), headers.get(TASK)
    if task:
        changed["metadata"] = {**(body.metadata or {}), "task": task}
    elif chat:
        changed["metadata"] = {"session_id": chat, **(body.metadata or {})}
    results = results_in(body.messages)
    # A side task has the message id of the answer that it is about.
    named = chat and message and not task and results is not None and (body.n or 1) == 1
    # Of several candidates it is not known beforehand which is the answer.
    named = named and candidates_of(body) == 1
    name = answer_name(chat or "", message or "", results or 0) if named else None
    return (body.model_copy(update=changed) if changed else body), name


def results_in(messages: Sequence[Message]) -> int | None:
    """Return how many results of tools the answer has so far; None if the request continues it.

    A message of Open WebUI is several completions where tools are called: one before each round of
    results, and the last after all of them, which is the one that its user judges.
    """
    if messages and messages[-1].role == "assistant":
        return None
    count = 0
    for message in reversed(messages):
        if message.role == "tool":
            count += 1
        elif not message.tool_calls:
            break
    return count


def answer_name(chat_id: str, message_id: str, results: int) -> str:
    """Return what a completion is called after the results of so many tools."""
    return f"open-webui\0{chat_id}\0{message_id}\0{results}"
