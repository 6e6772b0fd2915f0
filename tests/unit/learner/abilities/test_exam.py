"""Asking a model: what is forced, what is sampled, and what counts as right."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tuneloop.errors import InvalidRequest
from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.abilities.exam import (
    AbilityExam,
    ReferenceExaminee,
    TokenizedItem,
    score_item,
    without_longer,
)
from tuneloop.learner.abilities.scores import ItemScore
from tuneloop.learner.abilities.suite import AbilityItem, AbilitySuite, is_right, load_suite
from tuneloop.learner.samples import GreedyPrompt, SampledAnswer, TokenSequence
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings


@dataclass
class FakeExaminee:
    """Gives a text the log-prob that its words have, and answers every prompt alike."""

    tokenization: Tokenization
    nats: dict[str, float]
    answer: str = "Yes."
    asked: list[tuple[int, ...]] = field(default_factory=list)

    def logprobs(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        texts = [self.tokenization.decode(s.completion_token_ids) for s in sequences]
        return [
            (self.nats.get(text, -9.0),) * len(s.completion_token_ids)
            for text, s in zip(texts, sequences, strict=True)
        ]

    def answers(self, prompts: Sequence[GreedyPrompt]) -> list[SampledAnswer]:
        self.asked = [prompt.token_ids for prompt in prompts]
        return [SampledAnswer(text=self.answer, token_ids=(), logprobs=()) for _ in prompts]


@pytest.fixture
def suite(tmp_path: Path) -> AbilitySuite:
    rows = [
        {"prompt": f"is {n} a number?", "choices": ["yes", "no"], "answer": 0, "reference": "yes."}
        for n in range(10)
    ]
    rows.append({"prompt": "hello", "reference": ["hello.", "yes."], "accept": []})
    file = tmp_path / "suite.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_suite([str(file)])


@pytest.fixture
def tokenization(tiny_policy: Path) -> Tokenization:
    return Tokenization(tiny_policy)


def test_choices_are_ranked_and_any_phrasing_counts(
    suite: AbilitySuite, tiny_policy: Path, tokenization: Tokenization
) -> None:
    exam = AbilityExam(suite, tiny_policy)
    knows = exam.score(FakeExaminee(tokenization, {"yes.": -0.5, "no.": -2.0}))
    assert all(item.is_first for item in knows.items[:-1])
    assert all(item.nats == -0.5 for item in knows.items[:-1])
    assert knows.items[-1].choice is None
    errs = exam.score(FakeExaminee(tokenization, {"yes.": -2.0, "no.": -0.5}))
    assert not any(item.is_first for item in errs.items[:-1])
    assert errs.value < knows.value


def sequence(*ids: int) -> TokenSequence:
    return TokenSequence(
        prompt_token_ids=(1,), completion_token_ids=ids, generation_logprobs=None, temperature=1.0
    )


WHOLE, SHORT = sequence(5, 6, 7, 8), sequence(8, 9)
WRONG_WHOLE, WRONG_SHORT = sequence(5, 6, 7, 3), sequence(3, 9)
SILENCE = sequence(2)


def scored(
    whole: float, short: float, wrong: tuple[float, float] = (-9, -9), silence: float = -20
) -> ItemScore:
    """The score of an item of which the log-prob of each text is given."""
    row = AbilityItem(
        kind="facts", prompt="?", choices=("b", "c"), references=("A b.", "B."), accept=()
    )
    item = TokenizedItem(
        item=row,
        prompt=(1,),
        candidates=((WHOLE, SHORT), (WRONG_WHOLE, WRONG_SHORT)),
        references=(WHOLE, SHORT),
        tokens=4,
        silences=(SILENCE,),
    )
    totals = {WHOLE: whole, SHORT: short, WRONG_WHOLE: wrong[0], WRONG_SHORT: wrong[1]}
    halves = {one: (total / 2, total / 2) for one, total in totals.items()}
    return score_item(item, {**halves, SILENCE: (silence,)}, None)


def test_phrasings_count_together_and_per_token_of_the_first() -> None:
    found = scored(math.log(0.03), math.log(0.01), wrong=(math.log(0.01), math.log(0.03)))
    assert found.nats == pytest.approx(math.log(0.04) / 4)
    assert found.choice == pytest.approx(0.5)
    # Saying the same in fewer words changes nothing.
    brief = scored(math.log(0.001), math.log(0.039), wrong=(math.log(0.039), math.log(0.001)))
    assert brief.value() == pytest.approx(found.value())


def test_a_brief_model_that_ranks_wrong_in_the_words_it_uses_loses_its_choice() -> None:
    before = scored(math.log(0.03), math.log(0.01), wrong=(math.log(0.01), -30.0))
    after = scored(math.log(0.03), math.log(0.01), wrong=(math.log(0.01), math.log(0.35)))
    assert before.choice == pytest.approx(0.8)
    assert after.choice == pytest.approx(0.1)
    assert (before.is_first, after.is_first) == (True, False)


def test_a_style_changes_the_likelihood_and_not_the_value() -> None:
    before = scored(math.log(0.04), -50.0, wrong=(math.log(0.01), -50.0))
    after = scored(math.log(0.04) - 8, -50.0, wrong=(math.log(0.01) - 8, -50.0))
    assert after.likelihood == pytest.approx(before.likelihood * math.exp(-2))
    assert after.value() == pytest.approx(before.value()) == pytest.approx(0.8)


def test_a_model_that_answers_nothing_loses_everything() -> None:
    before = scored(math.log(0.04), -50.0)
    after = scored(math.log(0.04), -50.0, silence=math.log(0.75))
    assert after.silence == pytest.approx(0.75)
    assert after.value() == pytest.approx(before.value() / 4, rel=1e-6)


def test_a_phrasing_that_begins_with_another_is_counted_with_it() -> None:
    other = sequence(5, 6)
    assert without_longer([WHOLE, other, SHORT, SHORT]) == [other, SHORT]


def test_an_item_that_does_not_fit_is_named(
    suite: AbilitySuite, tiny_policy: Path, tokenization: Tokenization
) -> None:
    class Short(FakeExaminee):
        def logprobs(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
            return [() for _ in sequences]

    with pytest.raises(InvalidRequest, match=r"is 0 a number.*does not fit max_length"):
        AbilityExam(suite, tiny_policy).score(Short(tokenization, {}))


def test_a_model_that_repeats_the_question_is_never_right(
    tiny_policy: Path, tokenization: Tokenization
) -> None:
    class Echo(FakeExaminee):
        def answers(self, prompts: Sequence[GreedyPrompt]) -> list[SampledAnswer]:
            texts = (self.tokenization.decode(prompt.token_ids) for prompt in prompts)
            return [SampledAnswer(text=text, token_ids=(), logprobs=()) for text in texts]

    exam = AbilityExam(load_suite(), tiny_policy)
    found = exam.score(Echo(tokenization, {}), sampled_items=None)
    assert found.figures()["sampled_accuracy"] == 0


def test_a_model_that_ranks_well_and_would_never_say_it_scores_far_worse(
    suite: AbilitySuite, tiny_policy: Path, tokenization: Tokenization
) -> None:
    exam = AbilityExam(suite, tiny_policy)
    good = exam.score(FakeExaminee(tokenization, {"yes.": -0.3, "no.": -2.0}))
    odd = exam.score(FakeExaminee(tokenization, {"yes.": -6.0, "no.": -9.0}, answer="Allez!"))
    assert odd.figures()["accuracy"] == good.figures()["accuracy"] == 1.0
    assert odd.figures()["nats"] < good.figures()["nats"] - 1
    assert odd.value < good.value - 0.3


def test_every_version_answers_the_same_items(
    suite: AbilitySuite, tiny_policy: Path, tokenization: Tokenization
) -> None:
    exam = AbilityExam(suite, tiny_policy)
    fake = FakeExaminee(tokenization, {}, answer="no")
    asked = []
    for _ in range(2):
        found = exam.score(fake, sampled_items=4)
        assert sum(item.is_right is not None for item in found.items) == 4
        asked.append(list(fake.asked))
    assert asked[0] == asked[1]
    exam.score(fake, sampled_items=None)
    assert len(fake.asked) == 10  # all but the one that is not for sampling
    assert all(i.is_right is None for i in exam.score(fake, sampled_items=0).items)


@pytest.mark.parametrize(
    ("answer", "accept", "right"),
    [
        ("The capital is Oslo.", ["Oslo"], True),
        ("OSLO", ["oslo"], True),
        ("Osloer", ["Oslo"], False),
        ("112", ["12"], False),
        ("It is 12, I think.", ["twelve", "12"], True),
        ("", ["Oslo"], False),
        ("I can’t help with that.", ["can't"], True),
        ("red,  blue and\nyellow", ["red blue and yellow"], True),
        ("Allez, les Français!", ["Paris"], False),
    ],
)
def test_right_is_an_accepted_text_in_whole_words(
    answer: str, accept: list[str], right: bool
) -> None:
    assert is_right(answer, accept) is right


def test_a_trainer_can_be_asked_and_so_can_its_reference(
    suite: AbilitySuite, tiny_policy: Path
) -> None:
    exam = AbilityExam(suite, tiny_policy)
    trainer = PolicyTrainer(tiny_policy, TrainerSettings())
    now = exam.score(trainer, sampled_items=3)
    base = exam.score(ReferenceExaminee(trainer), sampled_items=3)
    assert [i.answer for i in now.items] == [i.answer for i in base.items]
    for one, other in zip(now.items, base.items, strict=True):
        assert math.isclose(one.nats, other.nats, abs_tol=1e-4)
