"""The value of an item, figures of a version, and the paired comparison of two."""

import json
import math
from dataclasses import replace

import pytest

from tuneloop.errors import InvalidRequest
from tuneloop.learner.abilities.scores import AbilityScores, ItemScore, compare


def scores(*items: ItemScore) -> AbilityScores:
    return AbilityScores(suite_sha256="s", items=items)


def item(name: str, probability: float, *, choice: float | None = 0.5, right: bool | None = None):
    return ItemScore(
        id=name,
        kind="facts",
        nats=math.log(probability),
        choice=choice,
        is_first=None if choice is None else choice > 0.5,
        is_right=right,
        answer=None if right is None else "Oslo.",
    )


def test_a_value_is_of_the_parts_that_are_known() -> None:
    assert item("a", 0.25, choice=None).value() == pytest.approx(0.25)
    assert item("a", 0.25, choice=0.75).value() == pytest.approx(0.75)
    right = item("a", 0.25, choice=0.75, right=True)
    assert right.value() == pytest.approx((2 * 0.75 + 1) / 3)
    assert right.value(sampled=False) == pytest.approx(0.75)


def test_what_is_never_answered_has_no_value() -> None:
    knows = item("a", 0.25, choice=0.75)
    assert replace(knows, silence=0.2).value() == pytest.approx(0.8 * 0.75)
    assert replace(knows, silence=1.0).value() == 0


def test_figures_are_means_over_the_items_that_have_the_part() -> None:
    found = scores(item("a", 0.5, choice=0.7, right=True), item("b", 0.25, choice=0.2)).figures()
    assert found["accuracy"] == 0.5
    assert found["sampled_accuracy"] == 1.0
    assert found["nats"] == pytest.approx((math.log(0.5) + math.log(0.25)) / 2)
    assert found["value"] == pytest.approx(((2 * 0.7 + 1) / 3 + 0.2) / 2)
    assert "sampled_accuracy" not in scores(item("a", 0.5)).figures()


def test_a_comparison_pairs_items_and_counts_answers_that_both_gave() -> None:
    base = scores(
        item("a", 0.5, right=True),
        item("b", 0.5, right=True),
        item("c", 0.5, choice=0.4),
        item("d", 0.5, choice=None),
    )
    worse = scores(
        item("d", 0.1, choice=None),
        item("c", 0.3, choice=0.2),
        item("b", 0.5),
        item("a", 0.5, right=False),
    )
    found = compare(worse, base)
    # a: its answer is a third; b: equal, its answer is known of one only; c: its choice; d: its
    # likelihood, as it has no choices.
    expected = (-1 / 3 + 0 - 0.2 - 0.4) / 4
    assert found.value.pairs == 4
    assert found.value.difference == pytest.approx(expected)
    assert found.value.low < expected < found.value.high
    assert found.sampled is None
    assert found.accuracy is not None
    assert found.accuracy.difference == 0
    assert compare(base, base).value.high == 0


def test_too_few_common_items_are_an_error() -> None:
    with pytest.raises(InvalidRequest, match="1 items are common"):
        compare(scores(item("a", 0.5), item("b", 0.5)), scores(item("a", 0.5)))


def test_scores_survive_json() -> None:
    found = scores(item("a", 0.5, right=True), item("b", 0.25, choice=None))
    assert AbilityScores.of_document(json.loads(json.dumps(found.document()))) == found
