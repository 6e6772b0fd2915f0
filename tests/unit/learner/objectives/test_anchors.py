"""What is held of the base model's answers to anchor prompts."""

from collections.abc import Sequence

from tuneloop.learner.objectives.anchors import Anchors
from tuneloop.learner.samples import SampledAnswer

END = 2


def make_anchors(*answers: tuple[int, ...]) -> Anchors:
    """Anchors with prompts (10,), (11,), … whose answers are given."""
    of_prompt = {(10 + number,): answer for number, answer in enumerate(answers)}

    def answer(prompts: Sequence[Sequence[int]], max_tokens: int) -> list[SampledAnswer]:
        return [
            SampledAnswer(text="", token_ids=of_prompt[tuple(prompt)][:max_tokens], logprobs=())
            for prompt in prompts
        ]

    return Anchors(list(of_prompt), answer=answer, ends=frozenset({END}), seed=0)


def held(anchors: Anchors, count: int) -> dict[tuple[int, ...], tuple[int, ...]]:
    return {s.prompt_token_ids: s.completion_token_ids for s in anchors.sequences(0, count)}


def test_the_end_of_an_answer_is_not_held() -> None:
    long = tuple(range(100, 130))
    anchors = make_anchors((5, 6, END), long)
    assert held(anchors, 2) == {(10,): (5, 6), (11,): long[:16]}


def test_an_empty_answer_is_no_anchor() -> None:
    assert held(make_anchors((END,), (5, END)), 2) == {(11,): (5,)}


def test_anchors_come_again_in_their_order() -> None:
    anchors = make_anchors((5, END), (6, END), (7, END))
    first = [s.prompt_token_ids for s in anchors.sequences(0, 3)]
    assert [s.prompt_token_ids for s in anchors.sequences(2, 3)] == [first[2], first[0], first[1]]


def test_one_by_one_they_are_answered_a_few_at_a_time_and_each_once() -> None:
    asked: list[int] = []

    def answer(prompts: Sequence[Sequence[int]], max_tokens: int) -> list[SampledAnswer]:
        asked.append(len(prompts))
        return [SampledAnswer(text="", token_ids=(*p, END), logprobs=()) for p in prompts]

    prompts = [(10 + number,) for number in range(40)]
    anchors = Anchors(prompts, answer=answer, ends=frozenset({END}), seed=0)
    found = [s.prompt_token_ids for n in range(45) for s in anchors.sequences(n, 1)]
    assert sorted(found[:40]) == prompts
    assert found[40:] == found[:5]
    assert asked == [16, 16, 8]
