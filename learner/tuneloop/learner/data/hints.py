"""A prompt with a user's comment in it: what the teacher of a commented answer reads.

The hint stands where the user's last turn ends; before a plain text. It is put among the tokens
that the policy was given, which otherwise stay as they were. Rendering the conversation again would
not give the same prompt: templates write the date, and the ledger does not keep functions.
"""

from bisect import bisect_left
from collections.abc import Sequence

from tuneloop.errors import InvalidRequest
from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.guards.hints import problem_of_hint
from tuneloop.rollouts import ChatMessage

HINT = "Feedback on an earlier answer to this: {comment}\nAnswer with this feedback in mind."


def hinted_prompt(
    tokenization: Tokenization,
    prompt: Sequence[int],
    messages: Sequence[ChatMessage],
    comment: str,
) -> tuple[int, ...]:
    """Return a prompt's token ids with a comment as a hint; `messages` are empty for plain text.

    Raises `InvalidRequest` for a comment that may not be a hint, and where there is no place.
    """
    if problem := problem_of_hint(comment):
        raise InvalidRequest(problem)
    if tokenization.spells_control_tokens(comment):
        raise InvalidRequest("the comment spells a control token of the model")
    hint = HINT.format(comment=comment.strip())
    if messages:
        place, hint = _end_of_question(tokenization, prompt, messages), f"\n\n{hint}"
    else:
        bos = tokenization.tokenizer.bos_token_id
        place, hint = int(bos is not None and prompt[:1] == (bos,)), f"{hint}\n\n"
    return (*prompt[:place], *tokenization.encode_text(hint), *prompt[place:])


def _end_of_question(
    tokenization: Tokenization, prompt: Sequence[int], messages: Sequence[ChatMessage]
) -> int:
    """Return how many tokens of a prompt come before the end of the user's last turn."""

    def read(count: int) -> str:
        return tokenization.decode(prompt[:count], skip_special_tokens=False)

    text = read(len(prompt))
    end = _last_words(text, messages)
    count = bisect_left(range(len(prompt)), end, key=lambda count: len(read(count)))
    while not text.startswith(read(count)):
        # A character of several tokens.
        count += 1
    if text[end : len(read(count))].strip():
        raise InvalidRequest("the user's last turn does not end where a token does")
    return count


def _last_words(text: str, messages: Sequence[ChatMessage]) -> int:
    """Return where in a rendered conversation the words of the user's last turn end."""
    end = len(text)
    for message in reversed(messages):
        words = message.content.strip()
        start = text.rfind(words, 0, end)
        if start < 0:
            break
        if message.role == "user" and words:
            return start + len(words)
        end = start
    raise InvalidRequest("the prompt has no words of a user's that a hint could follow")
