"""Items of `input` of `/v1/responses`, and the messages of a chat that they stand for."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tuneloop.text.messages import Message, Text
from tuneloop.text.unicode import unicode

BETWEEN_PARTS = "\n\n"
"""Between two texts of a message that is not the assistant's, or of a function's output."""

types_of_items = (
    "message",
    "function_call",
    "function_call_output",
    "reasoning",
    "item_reference",
)


class ContentPart(BaseModel):
    """A part of a message; text is the only kind there is."""

    type: Literal["input_text", "output_text"]
    text: str


def as_texts(content: object) -> list[str]:
    """Return text, or the texts of text parts. Raises `ValueError` for anything else."""
    if content is None or isinstance(content, str):
        return [unicode(content or "")]
    if not isinstance(content, list):
        raise ValueError("must be a string or a list of text parts")
    return [unicode(part_text(part)) for part in content]


def part_text(part: object) -> str:
    """Return the text of a part; raises `ValueError` for another kind."""
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind not in ("input_text", "output_text") or not isinstance(text, str):
        raise ValueError(f"parts of type {str(kind)[:40]!r} are not supported, text alone is")
    return text


Texts = Annotated[
    list[str], BeforeValidator(as_texts, json_schema_input_type=str | list[ContentPart] | None)
]


class InputItem(BaseModel):
    """A message, a call of a function, its output, or an earlier one; thoughts are not read."""

    model_config = ConfigDict(hide_input_in_errors=True, use_attribute_docstrings=True)

    type: Literal[
        "message", "function_call", "function_call_output", "reasoning", "item_reference"
    ] = "message"
    id: Text | None = None
    """Of a reference, which item of an earlier response it stands for."""
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Texts = []
    call_id: Text | None = Field(None, min_length=1)
    """Of a call, and of its output."""
    name: Text | None = None
    """Of the function that was called."""
    arguments: Text | None = None
    """JSON text."""
    output: Texts | None = None

    @model_validator(mode="before")
    @classmethod
    def check_type(cls, item: object) -> object:
        """Refuse an item of a type that is not supported, by its name."""
        kind = type_of(item)
        if kind not in types_of_items:
            raise ValueError(f"items of type {str(kind)[:40]!r} are not supported")
        if kind == "reasoning":
            return {"type": kind}
        return {**item, "type": kind} if isinstance(item, dict) else item

    @model_validator(mode="after")
    def check_members(self) -> Self:
        """Refuse an item without what its type needs."""
        match self.type:
            case "message" if self.role is None:
                raise ValueError("an item of type 'message' needs role and content")
            case "function_call" if None in (self.call_id, self.name, self.arguments):
                raise ValueError("an item of type 'function_call' needs call_id, name, arguments")
            case "item_reference" if not self.id:
                raise ValueError("an item of type 'item_reference' needs id")
            case "function_call_output" if None in (self.call_id, self.output):
                raise ValueError("an item of type 'function_call_output' needs call_id and output")
        return self

    @property
    def is_assistants(self) -> bool:
        """Whether the model said it."""
        return self.type == "function_call" or self.role == "assistant"


def type_of(item: object) -> object:
    """Return an item's type; one of nothing but an id is a reference, as in OpenAI's API."""
    given = item if isinstance(item, dict) else {}
    if given.get("type") is not None:
        return given["type"]
    return "item_reference" if "id" in given and given.keys() <= {"id", "type"} else "message"


def as_items(given: object) -> object:
    """Return text as the message of a user that it stands for."""
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


def chat_messages(items: Iterable[InputItem]) -> Iterator[Message]:
    """Yield the messages of a chat; the assistant's items that follow each other are one."""
    read = [item for item in items if item.type != "reasoning"]
    for is_assistants, group in groupby(read, key=lambda item: item.is_assistants):
        if is_assistants:
            yield assistant_message(list(group))
        else:
            yield from map(other_message, group)


def assistant_message(items: Sequence[InputItem]) -> Message:
    """Return a turn of the assistant: its text as it was sampled, and its calls."""
    calls: list[dict[str, Any]] = [
        {"id": item.call_id, "function": {"name": item.name, "arguments": item.arguments}}
        for item in items
        if item.type == "function_call"
    ]
    text = "".join(text for item in items for text in item.content)
    return Message.model_validate({"role": "assistant", "content": text, "tool_calls": calls})


def other_message(item: InputItem) -> Message:
    """Return a message of somebody else, or the output of a function."""
    if item.type == "function_call_output":
        output = BETWEEN_PARTS.join(item.output or [])
        return Message(role="tool", content=output, tool_call_id=item.call_id)
    assert item.role is not None, "references are resolved before"
    return Message(role=item.role, content=BETWEEN_PARTS.join(item.content))
