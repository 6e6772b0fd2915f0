"""Rows to samples of the policy: answers (sft), thumbs (kto), pairs (dpo), comments (sdft)."""

from collections.abc import Callable, Mapping, Sequence

from tuneloop.learner.data.fields import Fields, Form, Text, choose_form
from tuneloop.learner.data.preferences import (
    PAIRED,
    RANKED,
    check_answer,
    last_answer,
    preferences,
)
from tuneloop.learner.data.prompt_rows import read_prompt
from tuneloop.learner.data.table import Table
from tuneloop.learner.data.tokenize import PromptTokenizer
from tuneloop.learner.samples import (
    CommentedSample,
    DemonstrationSample,
    Objective,
    PairSample,
    PolicySample,
    ThumbSample,
    TokenSequence,
)

ANSWERED = Form(columns=("prompt", "completion"))
CONVERSATION = Form(columns=("messages",))
SHAREGPT = Form(columns=("conversations",))
PLAIN = Form(columns=("text",))
LABELLED = Form(columns=("prompt", "completion", "label"))
INSTRUCTED = Form(columns=("instruction", "output"), optional=("input",))
"""Alpaca."""
INSTRUCTED_LABELLED = Form(columns=("instruction", "output", "label"), optional=("input",))
COMMENTED = Form(columns=("prompt", "completion", "comment"))
COMMENTED_TURN = Form(columns=("messages", "completion", "comment"))
COMMENTED_CONVERSATION = Form(columns=("messages", "comment"))
"""The comment is on its last turn."""
INSTRUCTED_COMMENTED = Form(columns=("instruction", "output", "comment"), optional=("input",))

Maker = Callable[[Fields], Sequence[PolicySample]]


def sample_maker(objective: Objective, table: Table, tokens: PromptTokenizer, reader: str) -> Maker:
    """Return how a row of `table` becomes samples; raises `InvalidRequest` for other columns."""
    forms, make = row_formats[objective]
    form = choose_form(table, forms, reader)
    return lambda row: make(row, form, tokens)


def demonstrations(row: Fields, form: Form, tokens: PromptTokenizer) -> list[DemonstrationSample]:
    """Return the demonstration of a row; of a conversation, every turn of the assistant."""
    if form is PLAIN:
        return [DemonstrationSample(sample_id=row.place, sequence=tokens.whole_text(row))]
    if form in (ANSWERED, INSTRUCTED):
        turns = [(read_prompt(row, form), read_completion(row, form))]
    else:
        [name] = form.columns
        turns = last_answer(row[name].messages())
        if not turns:
            raise row.wrong(f"{name} has no answer of the assistant's to learn from")
    names = [
        row.place if len(turns) == 1 else f"{row.place}, answer {i + 1}" for i in range(len(turns))
    ]
    found = [
        (name, answered(prompt, completion, row, tokens))
        for name, (prompt, completion) in zip(names, turns, strict=True)
    ]
    return [
        DemonstrationSample(
            sample_id=name, sequence=sequence, shows_thought=bool(tokens.thought_text(sequence))
        )
        for name, sequence in found
    ]


def thumbs(row: Fields, form: Form, tokens: PromptTokenizer) -> list[ThumbSample]:
    """Return the thumb of a labelled answer; a pair is a thumb up and a thumb down."""
    if form in (LABELLED, INSTRUCTED_LABELLED):
        sequence = answered(read_prompt(row, form), read_completion(row, form), row, tokens)
        return [ThumbSample(sample_id=row.place, sequence=sequence, desirable=row["label"].flag())]
    [pair] = preferences(row, form)
    return [
        ThumbSample(
            sample_id=f"{row.place}, {name}",
            sequence=answered(pair.prompt, answer, row, tokens),
            desirable=name == "chosen",
        )
        for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected))
    ]


def pairs(row: Fields, form: Form, tokens: PromptTokenizer) -> list[PairSample]:
    """Return the pairs of a row; a ranking is all its pairs, without those of equal answers."""
    found = [
        (
            answered(pair.prompt, pair.chosen, row, tokens),
            answered(pair.prompt, pair.rejected, row, tokens),
        )
        for pair in preferences(row, form)
    ]
    names = [
        row.place if len(found) == 1 else f"{row.place}, pair {i + 1}" for i in range(len(found))
    ]
    differing = [
        (name, chosen, rejected)
        for name, (chosen, rejected) in zip(names, found, strict=True)
        if chosen.completion_token_ids != rejected.completion_token_ids
    ]
    if not differing:
        raise row.wrong("the answers have the same tokens")
    return [
        PairSample(sample_id=name, chosen=chosen, rejected=rejected, weight=1 / len(differing))
        for name, chosen, rejected in differing
    ]


def comments(row: Fields, form: Form, tokens: PromptTokenizer) -> list[CommentedSample]:
    """Return the commented answer of a row."""
    prompt: Text
    completion: Text
    if form is COMMENTED_CONVERSATION:
        *before, last = row["messages"].messages()
        if last.role != "assistant" or not before:
            raise row.wrong("messages do not end with an answer of the assistant's")
        prompt, completion = tuple(before), (last,)
    elif form is COMMENTED_TURN:
        prompt, completion = row["messages"].messages(), read_completion(row, form)
    else:
        prompt, completion = read_prompt(row, form), read_completion(row, form)
    check_answer(completion, "the completion", row)
    asked = tokens.asked(prompt, row)
    return [
        CommentedSample(
            sample_id=row.place,
            sequence=tokens.sequence(asked, completion, row),
            hinted_prompt_token_ids=tokens.hinted(asked, row["comment"].string(), row),
        )
    ]


def read_completion(row: Fields, form: Form) -> Text:
    """Return the answer of a row: its column `completion` or `output`."""
    return row[form.columns[1]].text()


def answered(prompt: Text, completion: Text, row: Fields, tokens: PromptTokenizer) -> TokenSequence:
    """Return one completion of a prompt as token ids."""
    check_answer(completion, "the completion", row)
    return tokens.sequence(tokens.asked(prompt, row), completion, row)


RowMaker = Callable[[Fields, Form, PromptTokenizer], Sequence[PolicySample]]

row_formats: Mapping[Objective, tuple[Sequence[Form], RowMaker]] = {
    Objective.SFT: ((ANSWERED, CONVERSATION, SHAREGPT, INSTRUCTED, PLAIN), demonstrations),
    Objective.KTO: ((LABELLED, INSTRUCTED_LABELLED, *PAIRED), thumbs),
    Objective.DPO: ((*PAIRED, RANKED), pairs),
    Objective.SDFT: (
        (COMMENTED, COMMENTED_TURN, COMMENTED_CONVERSATION, INSTRUCTED_COMMENTED),
        comments,
    ),
}
"""The columns that rows of an objective's samples can have, and what makes samples of a row."""
