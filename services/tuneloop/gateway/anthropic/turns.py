"""Turns of `/v1/messages`: their blocks, and the messages of a chat that they stand for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tuneloop.text.messages import Message, Text, TextPart, text_of
from tuneloop.text.unicode import json_text, unicode

BETWEEN_BLOCKS = "\n\n"
"""Between two texts of a system prompt, of a user's turn or of a tool's result."""

roles_of_block: Mapping[str, tuple[str, ...]] = {
    "text": ("user", "assistant", "system"),
    "tool_use": ("assistant",),
    "tool_result": ("user",),
    "thinking": ("assistant",),
    "redacted_thinking": ("assistant",),
}
"""Types of blocks, with the roles whose turns may have them."""


def join_texts(content: object) -> str:
    """Return text, or joined text blocks. Raises `ValueError` for anything else."""
    if content is None or isinstance(content, str):
        return unicode(content or "")
    if not isinstance(content, list):
        raise ValueError("must be a string or a list of text blocks")
    return unicode(BETWEEN_BLOCKS.join(map(text_of, content)))


JoinedText = Annotated[
    str, BeforeValidator(join_texts, json_schema_input_type=str | list[TextPart] | None)
]


def check_block_type(value: object) -> object:
    """Return `value`; raises `ValueError` naming a type of block that is not supported."""
    if not isinstance(value, str) or value not in roles_of_block:
        raise ValueError(f"blocks of type {str(value)[:40]!r} are not supported")
    return value


class ContentBlock(BaseModel):
    """A part of a turn: text, a thought, a call of a tool, or its result."""

    model_config = ConfigDict(hide_input_in_errors=True, use_attribute_docstrings=True)

    type: Annotated[
        Literal["text", "tool_use", "tool_result", "thinking", "redacted_thinking"],
        BeforeValidator(check_block_type),
    ]
    text: Text | None = None
    thinking: Text | None = None
    """A thought; its signature is not read."""
    id: Text | None = None
    """Of a call."""
    name: Text | None = None
    """Of the tool that was called."""
    input: dict[str, Any] | None = None
    tool_use_id: Text | None = Field(None, min_length=1)
    """Of the call whose result this is."""
    content: JoinedText = ""
    """The result."""

    @model_validator(mode="after")
    def check_members(self) -> Self:
        """Refuse a block without what its type needs."""
        match self.type:
            case "text" if self.text is None:
                raise ValueError("a block of type 'text' needs text")
            case "thinking" if self.thinking is None:
                raise ValueError("a block of type 'thinking' needs thinking")
            case "tool_use" if self.id is None or self.name is None or self.input is None:
                raise ValueError("a block of type 'tool_use' needs id, name and input")
            case "tool_result" if self.tool_use_id is None:
                raise ValueError("a block of type 'tool_result' needs tool_use_id")
        json_text(self.input)
        return self


def as_blocks(content: object) -> object:
    """Return a string as the block that it stands for."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class MessageTurn(BaseModel):
    """One turn of the conversation."""

    model_config = ConfigDict(hide_input_in_errors=True)

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[ContentBlock],
        BeforeValidator(as_blocks, json_schema_input_type=str | list[ContentBlock]),
    ]

    @model_validator(mode="after")
    def check_blocks(self) -> Self:
        """Refuse blocks that belong to another role."""
        for block in self.content:
            if self.role not in roles_of_block[block.type]:
                raise ValueError(f"a turn of the role {self.role!r} has no {block.type!r}")
        return self


def chat_messages(system: str, turns: Iterable[MessageTurn]) -> Iterator[Message]:
    """Yield the messages of a chat; turns of one role that follow each other are one."""
    if system:
        yield Message(role="system", content=system)
    for role, group in groupby(turns, key=lambda turn: turn.role):
        blocks = [block for turn in group for block in turn.content]
        if role == "assistant":
            yield assistant_message(blocks)
        elif role == "user":
            yield from user_messages(blocks)
        else:
            yield text_message("system", blocks)


def assistant_message(blocks: Sequence[ContentBlock]) -> Message:
    """Return a turn of the assistant: its thought, its text as it was sampled, and its calls."""
    calls = [
        {"id": b.id, "function": {"name": b.name, "arguments": b.input}}
        for b in blocks
        if b.type == "tool_use"
    ]
    text = "".join(b.text or "" for b in blocks if b.type == "text")
    thought = BETWEEN_BLOCKS.join(b.thinking for b in blocks if b.thinking)
    return Message.model_validate(
        {
            "role": "assistant",
            "content": text,
            "tool_calls": calls,
            "reasoning_content": thought or None,
        }
    )


def user_messages(blocks: Iterable[ContentBlock]) -> Iterator[Message]:
    """Yield what is in turns of a user: results of tools, and texts, in their order."""
    for kind, group in groupby(blocks, key=lambda block: block.type):
        if kind == "text":
            yield text_message("user", group)
            continue
        for result in group:
            yield Message(role="tool", content=result.content, tool_call_id=result.tool_use_id)


def text_message(role: Literal["user", "system"], blocks: Iterable[ContentBlock]) -> Message:
    """Return a turn of text blocks."""
    return Message(role=role, content=BETWEEN_BLOCKS.join(block.text or "" for block in blocks))
