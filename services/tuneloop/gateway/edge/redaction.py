"""Where texts leave the gateway to be kept: personal data is replaced before they do.

The requests of every API become one message for generation, which keeps what it is given: prompt,
tools, schema, tags, and the tokens of all that. Feedback, signals and imported rows are kept by the
bus and the ledger. Ids have to be found again: they stay as they are, or are refused.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from tuneloop.errors import InvalidRequest, TuneloopError
from tuneloop.feedback import Comment, Demonstration, Feedback, Signal
from tuneloop.gateway import metrics
from tuneloop.redaction.redactor import Redactor
from tuneloop.text.unicode import json_text
from tuneloop.v1 import generation_pb2, learner_pb2

Clean: TypeAlias = Mapping[str, str]
"""Texts as they may be kept, by what they were."""
Form: TypeAlias = Literal["text", "json", "id"]

IDENTIFIER = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9_.-]{1,128}")
"""An id or a name of a function whose form says nothing about a person."""
UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
LEAST_DIGITS = 7
"""Of a number that may be that of a telephone or an account."""


async def redact_request(redactor: Redactor, request: generation_pb2.GenerateRequest) -> None:
    """Replace personal data in a request for completions, and mark it as redacted.

    Raises `InvalidRequest` for a prompt of token ids, which cannot be examined, and for a session
    whose id holds personal data; `Unavailable`.
    """
    if request.WhichOneof("prompt") == "tokens":
        raise InvalidRequest(
            "prompt: token ids cannot be redacted, as this service is set to "
            "(TUNELOOP_REDACT_ENTITIES): send text",
            param="prompt",
        )
    fields = list(fields_of(request))
    texts = [*request.sampling.stop, *texts_of("id", request.session_id)]
    for owner, name, form in fields:
        texts += texts_of(form, getattr(owner, name))
    for values, form in maps_of(request):
        texts += values
        for value in values.values():
            texts += texts_of(form, value)
    clean = await examine(redactor, texts)
    check_session(request.session_id, clean)
    for owner, name, form in fields:
        value = getattr(owner, name)
        if (cleaned := cleaned_text(form, value, clean)) != value:
            setattr(owner, name, cleaned)
    request.sampling.stop[:] = [clean.get(text, text) for text in request.sampling.stop]
    for values, form in maps_of(request):
        kept = {clean.get(n, n): cleaned_text(form, v, clean) for n, v in values.items()}
        values.clear()
        values.update(kept)
    request.redacted = True


async def redact_feedback(redactor: Redactor, feedback: Feedback) -> Feedback:
    """Return feedback without personal data in its text and its metadata.

    Raises `InvalidRequest` for a session whose id holds personal data; `Unavailable`.
    """
    judgement, metadata = feedback.judgement, dict(feedback.metadata)
    texts = [*texts_in(metadata), *texts_of("id", feedback.session_id)]
    if isinstance(judgement, Comment | Demonstration):
        texts.append(judgement.text)
    clean = await examine(redactor, texts)
    check_session(feedback.session_id, clean)
    match judgement:
        case Comment(text=text):
            judgement = Comment(text=clean.get(text, text))
        case Demonstration(text=text):
            judgement = Demonstration(text=clean.get(text, text))
    return replace(feedback, judgement=judgement, metadata=cleaned_value(metadata, clean))


async def redact_signal(redactor: Redactor, signal: Signal) -> Signal:
    """Return a signal without personal data in its metadata. Raises `Unavailable`."""
    metadata = dict(signal.metadata)
    clean = await examine(redactor, texts_in(metadata))
    return replace(signal, metadata=cleaned_value(metadata, clean))


async def redact_rows(redactor: Redactor, rows: Iterable[learner_pb2.ImportedRow]) -> None:
    """Replace personal data in rows to import. Raises `Unavailable`."""
    for row in rows:
        clean = await examine(redactor, [*texts_of("json", row.row), row.place])
        row.row = cleaned_text("json", row.row, clean)
        row.place = clean.get(row.place, row.place)


async def examine(redactor: Redactor, texts: Iterable[str]) -> Clean:
    """Return texts as they may be kept, and count what came of it."""
    try:
        clean = await redactor.redact(text for text in texts if UUID.fullmatch(text) is None)
    except TuneloopError:
        metrics.redactions.labels("failed").inc()
        raise
    changed = any(before != after for before, after in clean.items())
    metrics.redactions.labels("redacted" if changed else "clean").inc()
    return clean


def check_session(session_id: str, clean: Clean) -> None:
    """Raise `InvalidRequest` for an id of a session that holds personal data."""
    if clean.get(session_id, session_id) != session_id:
        raise InvalidRequest(
            "session_id: holds personal data, and an id cannot be redacted: send another, such as "
            "a hash of it",
            param="session_id",
        )


def fields_of(request: generation_pb2.GenerateRequest) -> Iterator[tuple[Any, str, Form]]:
    """Yield the fields of a request that hold text: their owner, name and form."""
    if request.HasField("text"):
        yield request, "text", "text"
    for turn in request.chat.messages:
        yield turn, "content", "text"
        yield turn, "reasoning", "text"
        yield turn, "tool_call_id", "id"
        for call in turn.tool_calls:
            yield call, "arguments", "json"
            yield call, "call_id", "id"
            yield call, "name", "id"
    for tool in request.tool_use.tools:
        yield tool, "description", "text"
        yield tool, "parameters", "json"
        yield tool, "name", "id"
    if request.tool_use.name:
        yield request.tool_use, "name", "id"
    yield request.sampling, "json_schema", "json"


def maps_of(
    request: generation_pb2.GenerateRequest,
) -> Iterator[tuple[MutableMapping[str, str], Form]]:
    """Yield the maps of a request, with the form of their values."""
    yield request.tags, "text"
    yield request.template_options, "json"
    yield request.columns, "json"


def texts_of(form: Form, value: str) -> Iterator[str]:
    """Yield the texts to examine in a field."""
    if form == "id" and IDENTIFIER.fullmatch(value):
        return
    yield value
    if form == "json" and (parsed := parse(value)) is not None:
        yield from texts_in(parsed)


def cleaned_text(form: Form, value: str, clean: Clean) -> str:
    """Return a field as it may be kept; what JSON there is stays JSON."""
    parsed = parse(value) if form == "json" else None
    if parsed is None:
        return clean.get(value, value)
    cleaned = cleaned_value(parsed, clean)
    # A member that is there twice is only seen in the text.
    if cleaned == parsed and clean.get(value, value) == value:
        return value
    try:
        return json_text(cleaned)
    except ValueError:
        return json.dumps(cleaned)


def parse(text: str) -> Any:
    """Return what JSON says; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def texts_in(value: Any) -> Iterator[str]:
    """Yield the texts of a JSON value: strings, names of members, numbers with many digits."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for member in value.values():
            yield from texts_in(member)
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item)
    elif is_long_number(value):
        yield str(value)


def cleaned_value(value: Any, clean: Clean) -> Any:
    """Return a JSON value as it may be kept."""
    if isinstance(value, str):
        return clean.get(value, value)
    if isinstance(value, dict):
        return {clean.get(n, n): cleaned_value(member, clean) for n, member in value.items()}
    if isinstance(value, list):
        return [cleaned_value(item, clean) for item in value]
    if is_long_number(value):
        cleaned = clean.get(str(value), str(value))
        return value if cleaned == str(value) else cleaned
    return value


def is_long_number(value: Any) -> bool:
    """Return whether a JSON value is a number with many digits."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and sum(map(str.isdigit, str(value))) >= LEAST_DIGITS
