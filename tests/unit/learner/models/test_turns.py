"""Turns of a conversation in one row: what the next turn's prompt repeats is computed once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import make_obliging_policy
from torch import Tensor

from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.models.batch import collate, packed_batches, sequence_length
from tuneloop.learner.models.packing import (
    WORTH,
    Segment,
    common_beginnings,
    pack,
    packed_length,
    trees,
)
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.models.world import shard_sequences
from tuneloop.learner.samples import TokenSequence
from tuneloop.policies import WeightsKind
from tuneloop.rollouts import ChatMessage, Prompt, Tool, ToolCall, ToolUse

CPU = torch.device("cpu")


def sequence(prompt: tuple[int, ...], completion: tuple[int, ...]) -> TokenSequence:
    return TokenSequence(
        prompt_token_ids=prompt,
        completion_token_ids=completion,
        generation_logprobs=(),
        temperature=1.0,
    )


TURNS = [
    sequence((1, 2), (3, 4)),
    # 5 and 6: a tool's result, a user's message.
    sequence((1, 2, 3, 4, 5), (7, 4)),
    sequence((1, 2, 3, 4, 5, 7, 4, 6), (8, 9, 4)),
]


def test_earlier_turns_are_computed_inside_the_last() -> None:
    layout = pack(list(reversed(TURNS)), CPU)
    assert layout.input_ids.tolist() == [[1, 2, 3, 4, 5, 7, 4, 6, 8, 9]]
    assert layout.position_ids.tolist() == [list(range(10))]
    assert layout.segments == (Segment(length=10),)
    assert layout.sources.tolist() == [7, 8, 9, 4, 5, 1, 2]
    assert packed_length(TURNS) == 10


def test_siblings_of_any_turn_leave_the_conversation_where_their_prompt_ends() -> None:
    rows = [
        sequence((1, 2), (3, 4)),
        sequence((1, 2), (5, 6, 4)),
        sequence((1, 2, 3, 4, 8), (9, 9, 4)),
        sequence((1, 2, 3, 4, 8), (7, 4)),
    ]
    layout = pack(rows, CPU)
    assert layout.input_ids.tolist() == [[1, 2, 3, 4, 8, 7, 9, 9, 5, 6]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 5, 6, 2, 3]]
    assert layout.segments == (
        Segment(length=2),
        Segment(length=3, goes_on_from=0),
        Segment(length=1, goes_on_from=1),
        Segment(length=2, goes_on_from=1),
        Segment(length=2, goes_on_from=0),
    )
    assert layout.sources.tolist() == [1, 2, 1, 8, 9, 4, 6, 7, 4, 5]


@pytest.mark.parametrize(
    ("following", "tokens"),
    [
        # The last token of a completion is not read, so it may be rendered differently.
        ((1, 2, 3, 4, 9, 6), 7),
        # The answer is rendered differently: the first turn's prompt is shared, and no more.
        ((1, 2, 3, 8, 5, 6), 9),
        ((1, 2, 5, 6), 7),
        # So is its prompt: nothing is.
        ((1, 8, 3, 4, 5, 6), 11),
    ],
)
def test_what_a_template_renders_differently_is_not_shared(
    following: tuple[int, ...], tokens: int
) -> None:
    rows = [sequence((1, 2), (3, 4, 5)), sequence(following, (7, 5))]
    assert packed_length(rows) == pack(rows, CPU).input_ids.numel() == tokens


def test_a_conversation_with_a_tool_call_counts_as_its_last_turn(tmp_path: Path) -> None:
    tokenization = Tokenization(make_obliging_policy(tmp_path))
    use = ToolUse(tools=(Tool(name="weather"),))
    call = ToolCall(call_id="1", name="weather", arguments='{"city": "Paris"}')
    messages = [
        ChatMessage(role="user", content="what is the weather in Paris?"),
        ChatMessage(role="assistant", content="", tool_calls=(call,)),
        ChatMessage(role="tool", content="yes 9 8 7", tool_call_id="1"),
        ChatMessage(role="assistant", content="no please"),
        ChatMessage(role="user", content="thanks"),
        ChatMessage(role="assistant", content="hello world"),
    ]

    def tokens(count: int) -> tuple[int, ...]:
        prompt = Prompt(messages=tuple(messages[:count]), tool_use=use)
        return tokenization.tokenize(prompt).token_ids

    def turn(answer: int) -> TokenSequence:
        """What was sampled: the answer as the template renders it, up to its end of turn."""
        prompt = tokens(answer)
        after = [*tokens(answer + 1)[len(prompt) :]]
        (end,) = tokenization.stop_token_ids
        return sequence(prompt, tuple(after[: after.index(end) + 1]))

    turns = [turn(answer) for answer in (1, 3, 5)]
    last = sequence_length(turns[-1])
    assert [sequence_length(each) for each in turns] == [197, 220, 239]
    assert sum(map(sequence_length, turns)) == 656
    assert packed_length(turns) == last - 1 == 238
    assert pack(turns, CPU).segments == (Segment(length=238),)
    # The tool's result is in the second prompt, so no target of any turn.
    result = tokenization.decode(turns[1].prompt_token_ids, skip_special_tokens=False)
    assert "yes 9 8 7" in result
    targets = collate(turns, CPU).targets.tolist()
    assert len(targets) == sum(len(each.completion_token_ids) for each in turns)


def test_turns_stay_in_one_pass_where_they_fit() -> None:
    other = [sequence((n, n), (n, n)) for n in (11, 12, 13)]
    items = [TURNS[1], other[0], TURNS[2], other[1], TURNS[0], other[2]]
    assert trees(items) == [[4, 0, 2], [1], [3], [5]]
    # 10 places for all turns together, 3 for each other row.
    for budget in (10, 9):
        cut = packed_batches(items, sequences=lambda s: (s,), token_budget=budget)
        assert cut == [TURNS[::-1], other]
    # The last turn is larger than the budget; those before cost nothing beside it.
    cut = packed_batches(items, sequences=lambda s: (s,), token_budget=4)
    assert cut == [TURNS[::-1], *([one] for one in other)]
    # 13 places with a second answer to the second turn, 8 for that one alone.
    second = sequence((1, 2, 3, 4, 5), (9, 9, 9, 9))
    cut = packed_batches([second, *TURNS], sequences=lambda s: (s,), token_budget=12)
    assert cut == [TURNS[::-1], [second]]
    assert shard_sequences(items, 2) == [[0, 2, 4], [1, 3, 5]]


SYSTEM = tuple(range(10, 10 + WORTH))


def test_a_system_prompt_is_computed_once() -> None:
    rows = [sequence((*SYSTEM, 1, 2), (3, 4)), sequence((*SYSTEM, 1, 5), (6, 4))]
    layout = pack(rows, CPU)
    assert layout.input_ids.tolist() == [[*SYSTEM, 1, 2, 3, 5, 6]]
    assert layout.position_ids.tolist() == [[*range(9), 9, 10, 9, 10]]
    assert layout.segments == (
        Segment(length=9),
        Segment(length=2, goes_on_from=0),
        Segment(length=2, goes_on_from=0),
    )
    # Rows may be cut, and shared among ranks, as if they had nothing in common.
    assert trees(rows) == [[0], [1]]


def test_a_beginning_is_shared_by_all_who_have_it() -> None:
    tools = tuple(range(30, 30 + WORTH))
    prompts = sorted(
        [
            (*SYSTEM, 1, 2),
            (*SYSTEM, 1, 3),
            (*SYSTEM, *tools, 4),
            (*SYSTEM, *tools, 5),
            (*SYSTEM, *tools[1:], 4),
            SYSTEM[1:],
        ]
    )
    # What two share beyond it is too short for a segment.
    assert common_beginnings(prompts) == {SYSTEM, (*SYSTEM, *tools)}
    assert common_beginnings([SYSTEM[1:], (*SYSTEM[1:], 1)]) == set()


def ids(most: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(4, 9), min_size=1, max_size=most).map(tuple)


@st.composite
def conversations(draw: Any) -> list[TokenSequence]:
    """Turns, siblings, forks and rendered answers of a few conversations, in any order."""
    rows = [sequence(draw(ids(3)), draw(ids(3)))]
    for _ in range(draw(st.integers(0, 7))):
        one = draw(st.sampled_from(rows))
        prompt, answer = one.prompt_token_ids, one.completion_token_ids
        begin = {
            "sibling": prompt,
            "next": prompt + answer + draw(ids(3)),
            "other end": prompt + answer[:-1] + draw(ids(2)),
            "without thoughts": prompt + answer[1:] + draw(ids(2)),
            "new": draw(ids(3)),
        }
        rows.append(sequence(begin[draw(st.sampled_from(list(begin)))], draw(ids(4))))
    return draw(st.permutations(rows))  # type: ignore[no-any-return]


@st.composite
def under_system_prompts(draw: Any) -> list[TokenSequence]:
    """Conversations, some of which begin alike for a while."""
    systems = [SYSTEM, (*SYSTEM, *SYSTEM), (*SYSTEM, 5), SYSTEM[1:], ()]
    return [
        replace(row, prompt_token_ids=draw(st.sampled_from(systems)) + row.prompt_token_ids)
        for row in draw(conversations())
    ]


@given(conversations())
def test_tokens_counted_are_distinct_places(rows: list[TokenSequence]) -> None:
    """A place is a number of tokens read, and the shortest whole text that has read as many."""
    read = [s.prompt_token_ids + s.completion_token_ids[:-1] for s in rows]
    whole = {*read, *(s.prompt_token_ids for s in rows)}
    places = {
        (count, min((w for w in whole if w == text[: len(w)] and len(w) >= count), key=len))
        for text in read
        for count in range(1, len(text) + 1)
    }
    assert packed_length(rows) == pack(rows, CPU).input_ids.numel() == len(places)


@given(conversations() | under_system_prompts(), st.integers(1, 30))
def test_any_cut_keeps_the_budget_and_every_row(rows: list[TokenSequence], budget: int) -> None:
    items = list(enumerate(rows))
    batches = packed_batches(items, sequences=lambda item: (item[1],), token_budget=budget)
    assert sorted(number for batch in batches for number, _ in batch) == list(range(len(rows)))
    for batch in batches:
        longest = max(packed_length([row]) for _, row in batch)
        assert packed_length([row for _, row in batch]) <= max(budget, longest)
    together = packed_batches(items, sequences=lambda item: (item[1],), token_budget=10_000)
    assert len(together) == 1


@pytest.fixture(scope="module")
def model(tiny_policy: Path) -> PolicyModel:
    """All weights, in float64."""
    found = PolicyModel(tiny_policy, kind=WeightsKind.FULL)
    found._model.double()
    assert found.packs
    return found


@settings(max_examples=40)
@given(rows=conversations() | under_system_prompts())
def test_packed_turns_have_the_log_probs_and_gradients_of_each_alone(
    model: PolicyModel, rows: list[TokenSequence]
) -> None:
    packed = model.logprobs(collate(rows, CPU))
    alone = [model.logprobs(collate([row], CPU))[0] for row in rows]
    for found, expected in zip(packed, alone, strict=True):
        torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-6, atol=1e-6)

    def gradients(sums: list[Tensor]) -> list[Tensor]:
        loss = torch.stack([total.square() for total in sums]).sum()
        return list(torch.autograd.grad(loss, list(model.parameters().values())))

    pairs = zip(
        gradients([row.sum() for row in packed]),
        gradients([row.sum() for row in alone]),
        strict=True,
    )
    for found, expected in pairs:
        # Of a single token read, queries and keys have no gradient.
        off = torch.linalg.vector_norm(found - expected)
        assert float(off) <= 1e-5 * float(torch.linalg.vector_norm(expected)) + 1e-12
