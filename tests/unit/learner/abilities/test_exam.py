"""Asking a model: what is forced, what is sampled, and what counts as right."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.abilities.exam import AbilityExam, ReferenceExaminee, is_right
from tuneloop.learner.abilities.suite import AbilitySuite, load_suite
from tuneloop.learner.samples import SampledAnswer, TokenSequence
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

    def answers(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[SampledAnswer]:
        self.asked = [tuple(prompt) for prompt in prompts]
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


def test_choices_are_ranked_and_the_likeliest_phrasing_counts(
    suite: AbilitySuite, tiny_policy: Path, tokenization: Tokenization
) -> None:
    exam = AbilityExam(suite, tiny_policy)
    knows = exam.score(FakeExaminee(tokenization, {"yes.": -0.5, "no.": -2.0}))
    assert all(item.is_first for item in knows.items[:-1])
    assert all(item.nats == -0.5 for item in knows.items)
    assert knows.items[-1].choice is None
    errs = exam.score(FakeExaminee(tokenization, {"yes.": -2.0, "no.": -0.5}))
    assert not any(item.is_first for item in errs.items[:-1])
    assert errs.value < knows.value


def test_a_model_that_ranks_well_and_would_never_say_it_scores_far_worse(
    suite: AbilitySuite, tiny_policy: Path, tokenization: Tokenization
) -> None:
    exam = AbilityExam(suite, tiny_policy)
    good = exam.score(FakeExaminee(tokenization, {"yes.": -0.3, "no.": -2.0}))
    odd = exam.score(FakeExaminee(tokenization, {"yes.": -6.0, "no.": -9.0}, answer="Allez!"))
    assert odd.figures()["accuracy"] == good.figures()["accuracy"] == 1.0
    assert odd.value < good.value - 0.3


def test_sampled_items_rotate(
    suite: AbilitySuite, tiny_policy: Path, tokenization: Tokenization
) -> None:
    exam = AbilityExam(suite, tiny_policy)
    fake = FakeExaminee(tokenization, {}, answer="no")
    seen = []
    for rotation in range(5):
        found = exam.score(fake, rotation=rotation, sampled_items=2)
        assert sum(item.is_right is not None for item in found.items) == 2
        seen.extend(fake.asked)
    assert len(set(seen)) == 10  # all but the one that is not for sampling
    exam.score(fake, rotation=5, sampled_items=2)
    assert fake.asked == seen[:2]
    exam.score(fake, sampled_items=None)
    assert len(fake.asked) == 10
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
