"""A prompt as the reward model reads it: the same text where it is trained and where it scores."""

from collections.abc import Sequence

from tuneloop.rollouts import ChatMessage


def prompt_as_text(messages: Sequence[ChatMessage], prompt_text: str = "") -> str:
    """A conversation as plain text, or `prompt_text` where there is none.

    A single question is given as it is; of a longer conversation every turn is named by its role.
    No chat template is used: reward models must not depend on the policy's.
    """
    if not messages:
        return prompt_text
    if len(messages) == 1:
        return messages[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in messages)
