"""Items of suites: both forms, what is refused and how it is said, the shipped suite."""

import json
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from examples.demo import prompts as demo
from examples.pipeline import __main__ as pipeline
from tuneloop.errors import InvalidRequest
from tuneloop.learner.abilities import suite as suites
from tuneloop.learner.abilities.suite import AbilitySuite, is_right, load_suite
from tuneloop.rollouts import ChatMessage

OSLO = {
    "prompt": "Where is the parliament of Norway?",
    "choices": ["Bergen", "Oslo"],
    "answer": "Oslo",
    "reference": ["It is in Oslo.", "Oslo."],
    "kind": "facts",
}


def load(tmp_path: Path, *rows: dict[str, Any]) -> AbilitySuite:
    file = tmp_path / "suite.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_suite([str(file)])


def test_both_forms_are_read(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi!"}]
    suite = load(
        tmp_path,
        OSLO,
        {"prompt": "1 + 1?", "choices": ["3", "2", "4"], "answer": 1},
        {"prompt": turns, "reference": "Hello.", "accept": []},
    )
    oslo, two, hello = suite.items
    assert oslo.choices == ("Oslo", "Bergen")
    assert oslo.candidates == (("It is in Oslo.", "Oslo."), ("It is in Bergen.", "Bergen."))
    assert oslo.references == ("It is in Oslo.", "Oslo.")
    assert (oslo.accept, oslo.kind) == (("Oslo",), "facts")
    assert two.candidates == (("2",), ("3",), ("4",))
    assert (two.references, two.accept, two.kind) == (("2",), ("2",), "other")
    assert isinstance(hello.prompt[0], ChatMessage)
    assert (hello.candidates, hello.references, hello.accept) == ((), ("Hello.",), ())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"prompt": " "}, "line 1: prompt is empty"),
        ({"prompt": "x" * 8001}, "line 1: prompt has 8001 characters, more than 8000"),
        ({"choices": ["Oslo"]}, "line 1: choices has 1 texts, not 2 to 8"),
        ({"choices": ["Oslo", "Oslo"]}, "line 1: choices has a text twice"),
        ({"choices": ["Oslo", 3]}, "line 1: choices is a int, not text"),
        ({"answer": "Rome"}, "line 1: answer is 'Rome', which is none of the choices"),
        ({"answer": 2}, "line 1: answer is 2; the choices are 0 to 1"),
        ({"answer": True}, "line 1: answer is True, which is none of the choices"),
        ({"answer": None}, "line 1: answer is null"),
        ({"choices": None}, "line 1: answer names a choice, and there are no choices"),
        ({"reference": ["", "Oslo."]}, "line 1: reference is empty"),
        ({"reference": "x" * 1001}, "line 1: reference has 1001 characters, more than 1000"),
        ({"anwser": 1}, "line 1: unknown column anwser"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        load(tmp_path, {**OSLO, **change})
    assert problem in raised.value.message


def test_a_row_without_a_right_answer_and_a_repeated_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="needs choices and answer, or a reference"):
        load(tmp_path, {"prompt": "Why?"})
    with pytest.raises(InvalidRequest, match=r"line 2: the same item as .*line 1"):
        load(tmp_path, OSLO, {**OSLO, "kind": "geography"})


def test_the_hash_is_of_the_items_whatever_their_order(tmp_path: Path) -> None:
    other = {"prompt": "1 + 1?", "reference": "2"}
    one = load(tmp_path, OSLO, other)
    two = load(tmp_path, other, OSLO)
    three = load(tmp_path, OSLO, {**other, "reference": "3"})
    assert one.sha256 == two.sha256 != three.sha256


def test_choices_take_the_place_of_the_right_one_in_every_phrasing(tmp_path: Path) -> None:
    row = {"choices": ["eight", "six"], "answer": 1, "reference": ["It has six legs.", "Six."]}
    suite = load(
        tmp_path,
        {"prompt": "How many legs has an ant?", **row},
        {"prompt": "And a bee?", **row, "reference": "As many as an ant."},
    )
    ant, bee = suite.items
    assert ant.candidates == (("It has six legs.", "Six."), ("It has eight legs.", "Eight."))
    assert bee.candidates == (("six",), ("eight",))


def test_another_way_of_scoring_gives_other_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = load(tmp_path, OSLO)
    before = (suite.items[0].id, suite.sha256)
    monkeypatch.setattr(suites, "SCORING", suites.SCORING + 1)
    assert suite.items[0].id != before[0]
    assert suite.sha256 != before[1]


def test_an_answer_that_only_repeats_the_question_is_not_right_by_default(tmp_path: Path) -> None:
    choices = {"choices": ["tea", "coffee"], "answer": 0}
    suite = load(
        tmp_path,
        {"prompt": "Tea or coffee?", **choices},
        {"prompt": "What do I drink?", **choices},
        {"prompt": "Say hello.", "reference": ["Hello.", "Hi."]},
    )
    assert [item.accept for item in suite.items] == [(), ("tea",), ("Hi.",)]


def test_in_the_shipped_suite_no_echo_and_no_wrong_choice_is_a_right_answer() -> None:
    for item in load_suite().items:
        assert isinstance(item.prompt, str)
        assert not is_right(item.prompt, item.accept), item.prompt
        wrong = chain(*item.candidates[1:])
        assert not any(is_right(text, item.accept) for text in wrong), item.prompt
        if item.accept:
            assert all(is_right(right, item.accept) for right in item.references), item.prompt


def test_the_shipped_suite_is_large_mixed_and_not_what_examples_ask() -> None:
    suite = load_suite()
    assert len(suite.items) >= 200
    kinds = Counter(item.kind for item in suite.items)
    assert kinds.keys() >= {
        "facts",
        "arithmetic",
        "instructions",
        "refusals",
        "formats",
        "language",
        "safety",
        "common_sense",
    }
    assert min(kinds.values()) >= 12
    asked = {question.text for question in pipeline.questions()}
    asked |= {question for seed in range(3) for part in demo.questions(seed) for question in part}
    assert not asked & {item.prompt for item in suite.items}
    assert all(2 <= len(item.choices) <= 5 for item in suite.items)
    assert all(item.accept for item in suite.items if item.kind in ("facts", "arithmetic"))


def test_a_part_of_the_suite_has_items_of_every_kind() -> None:
    suite = load_suite()
    part = suite.part(64)
    assert len(part.items) == 64
    assert {item.kind for item in part.items} == {item.kind for item in suite.items}
    assert set(part.items) <= set(suite.items)
    assert suite.part(10_000) is suite
