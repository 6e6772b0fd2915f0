"""Rows with a chosen and a rejected answer, as TRL has them, or with answers best first."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from tuneloop.learner.data.fields import Fields, Form, Text
from tuneloop.learner.data.prompt_rows import read_prompt
from tuneloop.learner.data.words import cut_after_prompt
from tuneloop.rollouts import ChatMessage

EXPLICIT = Form(columns=("prompt", "chosen", "rejected"))
IMPLICIT = Form(columns=("chosen", "rejected"))
RANKED = Form(columns=("prompt", "completions"))
"""`completions` are best first."""
INSTRUCTED_PAIR = Form(columns=("instruction", "chosen", "rejected"), optional=("input",))
PAIRED = (EXPLICIT, INSTRUCTED_PAIR, IMPLICIT)
"""The columns that a pair can have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Two answers of one prompt."""

    prompt: Text
    chosen: Text
    rejected: Text


def preferences(row: Fields, form: Form) -> Sequence[Preference]:
    """Return the row's pairs: one, or all of a ranking."""
    if form.columns == RANKED.columns:
        prompt, completions = row["prompt"].text(), row["completions"].texts()
        return [
            Preference(prompt=prompt, chosen=better, rejected=worse)
            for better, worse in combinations(completions, 2)
        ]
    chosen, rejected = row["chosen"].text(), row["rejected"].text()
    if chosen == rejected:
        raise row.wrong("chosen and rejected are the same")
    is_explicit = form.columns != IMPLICIT.columns and form.columns[0] in row
    if is_explicit and not (is_whole(chosen) and is_whole(rejected)):
        return [Preference(prompt=read_prompt(row, form), chosen=chosen, rejected=rejected)]
    return [split_prompt(chosen, rejected, row)]


def is_whole(text: Text) -> bool:
    """Return whether it is a conversation with its questions, not an answer alone."""
    return not isinstance(text, str) and text[0].role != "assistant"


def split_prompt(chosen: Text, rejected: Text, row: Fields) -> Preference:
    """Take what both begin with as the prompt; raises `InvalidRequest`."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        if not (isinstance(chosen, str) and isinstance(rejected, str)):
            raise row.wrong("chosen and rejected are not both text or both conversations")
        prompt: Text = chosen[: cut_after_prompt(chosen, rejected)]
    else:
        length = 0
        for one, other in zip(chosen, rejected, strict=False):
            if one != other:
                break
            length += 1
        prompt = chosen[:length]
    if not prompt:
        raise row.wrong("chosen and rejected do not begin with the same prompt")
    rest = chosen[len(prompt) :], rejected[len(prompt) :]
    for name, answer in zip(("chosen", "rejected"), rest, strict=True):
        if not answer:
            raise row.wrong(f"{name} has no answer after the prompt")
        check_answer(answer, f"{name}, after the prompt,", row)
    return Preference(prompt=prompt, chosen=rest[0], rejected=rest[1])


def check_answer(answer: Text, name: str, row: Fields) -> None:
    """Raise `InvalidRequest` unless an answer is the assistant's and says or calls something."""
    turns = (ChatMessage(role="assistant", content=answer),) if isinstance(answer, str) else answer
    if any(turn.role != "assistant" for turn in turns):
        raise row.wrong(f"{name} holds turns that are not the assistant's after the prompt")
    if any(not turn.content.strip() and not turn.tool_calls for turn in turns):
        raise row.wrong(f"{name} is empty")


def last_answer(messages: tuple[ChatMessage, ...]) -> list[tuple[Text, Text]]:
    """Return each assistant's turn with all that came before it."""
    return [
        (messages[:index], (message,))
        for index, message in enumerate(messages)
        if message.role == "assistant" and index > 0
    ]
