"""The text of a prompt for the reward model, the same in training and in scoring."""

from collections.abc import Sequence

from tuneloop.rollouts import ChatMessage


def prompt_as_text(messages: Sequence[ChatMessage], prompt_text: str = "") -> str:
    """Return a conversation as plain text, or `prompt_text` without one.

    A single question is returned as it is; in a longer conversation each turn starts with its role.
    No chat template is used: reward models must not depend on the policy's.
    """
    if not messages:
        return prompt_text
    if len(messages) == 1:
        return messages[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in messages)
