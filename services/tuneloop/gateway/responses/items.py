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


kinds_of_parts = ("input_text", "output_text", "reasoning_text", "summary_text")


class ContentPart(BaseModel):
    """A part of a message; text is the only kind there is."""

    type: Literal["input_text", "output_text", "reasoning_text", "summary_text"]
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
    if kind not in kinds_of_parts or not isinstance(text, str):
        raise ValueError(f"parts of type {str(kind)[:40]!r} are not supported, text alone is")
    return text


Texts = Annotated[
    list[str], BeforeValidator(as_texts, json_schema_input_type=str | list[ContentPart] | None)
]


class InputItem(BaseModel):
    """A message, a call of a function, its output, a thought, or an earlier one of them."""

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
    summary: Texts = []
    """Of a thought, which stands for it where it has no content; what is encrypted is not read."""

    @model_validator(mode="before")
    @classmethod
    def check_type(cls, item: object) -> object:
        """Refuse an item of a type that is not supported, by its name."""
        kind = type_of(item)
        if kind not in types_of_items:
            raise ValueError(f"items of type {str(kind)[:40]!r} are not supported")
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
        return self.type in ("function_call", "reasoning") or self.role == "assistant"


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
    for is_assistants, group in groupby(items, key=lambda item: item.is_assistants):
        of_one = list(group)
        if not is_assistants:
            yield from map(other_message, of_one)
        elif any(item.type != "reasoning" for item in of_one):  # a thought alone is no turn
            yield assistant_message(of_one)


def assistant_message(items: Sequence[InputItem]) -> Message:
    """Return a turn of the assistant: its thought, its text as it was sampled, and its calls."""
    calls: list[dict[str, Any]] = [
        {"id": item.call_id, "function": {"name": item.name, "arguments": item.arguments}}
        for item in items
        if item.type == "function_call"
    ]
    said = [item for item in items if item.type == "message"]
    thoughts = [item for item in items if item.type == "reasoning"]
    thought = BETWEEN_PARTS.join(
        text
        for item in thoughts
        for text in (item.content if any(item.content) else item.summary)
        if text
    )
    return Message.model_validate(
        {
            "role": "assistant",
            "content": "".join(text for item in said for text in item.content),
            "tool_calls": calls,
            "reasoning_content": thought or None,
        }
    )


def other_message(item: InputItem) -> Message:
    """Return a message of somebody else, or the output of a function."""
    if item.type == "function_call_output":
        output = BETWEEN_PARTS.join(item.output or [])
        return Message(role="tool", content=output, tool_call_id=item.call_id)
    assert item.role is not None, "references are resolved before"
    return Message(role=item.role, content=BETWEEN_PARTS.join(item.content))
