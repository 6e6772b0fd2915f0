"""A conversation's messages."""

from collections.abc import Sequence

from tuneloop.rollouts import ChatMessage, ToolCall
from tuneloop.v1 import rollout_pb2


def messages_to_proto(messages: Sequence[ChatMessage]) -> rollout_pb2.ChatPrompt:
    """A conversation."""
    return rollout_pb2.ChatPrompt(
        messages=[
            rollout_pb2.ChatMessage(
                role=m.role,
                content=m.content,
                tool_calls=[
                    rollout_pb2.ToolCall(call_id=c.call_id, name=c.name, arguments=c.arguments)
                    for c in m.tool_calls
                ],
                tool_call_id=m.tool_call_id,
            )
            for m in messages
        ]
    )


def messages_from_proto(chat: rollout_pb2.ChatPrompt) -> tuple[ChatMessage, ...]:
    """A conversation; may be empty."""
    return tuple(
        ChatMessage(
            role=m.role,
            content=m.content,
            tool_calls=tuple(
                ToolCall(call_id=c.call_id, name=c.name, arguments=c.arguments)
                for c in m.tool_calls
            ),
            tool_call_id=m.tool_call_id,
        )
        for m in chat.messages
    )
