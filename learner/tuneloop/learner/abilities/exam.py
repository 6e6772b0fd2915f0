"""Asking a model the items of a suite, by teacher forcing and, for some, greedily."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Protocol

from tuneloop.errors import InvalidRequest
from tuneloop.learner.abilities.scores import AbilityScores, ItemScore
from tuneloop.learner.abilities.suite import AbilityItem, AbilitySuite, is_right
from tuneloop.learner.data.fields import Fields
from tuneloop.learner.data.tokenize import PromptTokenizer, without_end
from tuneloop.learner.samples import GreedyPrompt, SampledAnswer, TokenSequence
from tuneloop.learner.samples.learned_tokens import after_thought
from tuneloop.rollouts import ChatMessage

SAMPLED_ITEMS = 24
"""Items of a suite that a version answers greedily."""
SAMPLED_TOKENS = 24
"""Tokens of such an answer."""


class Examinee(Protocol):
    """A model that can be asked: a trainer with its current weights."""

    def logprobs(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        """Return the log-prob of each completion token; () for a sequence that does not fit."""
        ...

    def answers(self, prompts: Sequence[GreedyPrompt]) -> list[SampledAnswer]:
        """Return the answer to each prompt, in order."""
        ...


class HasReference(Protocol):
    """A trainer that knows its reference policy."""

    def reference_logprobs(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        """Return the reference policy's log-probs."""
        ...

    def reference_answers(
        self, prompts: Sequence[Sequence[int]], max_tokens: int
    ) -> list[SampledAnswer]:
        """Return the reference policy's greedy answers."""
        ...


@dataclass(frozen=True, slots=True)
class ReferenceExaminee:
    """The reference policy of a trainer, version 0, as an `Examinee`."""

    trainer: HasReference

    def logprobs(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        """See `Examinee.logprobs`."""
        return self.trainer.reference_logprobs(sequences)

    def answers(self, prompts: Sequence[GreedyPrompt]) -> list[SampledAnswer]:
        """See `Examinee.answers`; it does not differ from itself, and carries no divergences.

        All prompts have one `max_tokens`.
        """
        (max_tokens,) = {prompt.max_tokens for prompt in prompts}
        return self.trainer.reference_answers([p.token_ids for p in prompts], max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedItem:
    """An item as token ids; completions are without their end-of-answer token.

    Whether an answer ends where the item's author ended it is a taste, not an ability.
    """

    item: AbilityItem
    prompt: tuple[int, ...]
    candidates: tuple[tuple[TokenSequence, ...], ...]
    """Of each choice, the right one first, its phrasings."""
    references: tuple[TokenSequence, ...]
    """Its phrasings; none is the beginning of another."""
    tokens: int
    """Tokens of the first phrasing."""
    silences: tuple[TokenSequence, ...]
    """Ends without an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemAnswer:
    """A greedy answer to an item."""

    item: AbilityItem
    text: str
    divergences: tuple[float, ...] = ()
    """KL(π ‖ π_ref) before each of its tokens, in nats, where it was asked for."""

    @property
    def is_right(self) -> bool:
        """Whether the item accepts it."""
        return is_right(self.text, self.item.accept)


class AbilityExam:
    """A suite, tokenized once for a model and its later versions."""

    def __init__(self, suite: AbilitySuite, model_folder: Path) -> None:
        """Raise `InvalidRequest` for an item that does not fit the model in `model_folder`."""
        self.suite = suite
        self._sha256 = suite.sha256
        tokens = PromptTokenizer(model_folder, max_length=None)
        self._items = [tokenize_item(item, tokens) for item in suite.items]

    def score(
        self,
        examinee: Examinee,
        *,
        sampled_items: int | None = SAMPLED_ITEMS,
        sampled_tokens: int = SAMPLED_TOKENS,
    ) -> AbilityScores:
        """Ask every item; blocks, in the trainer's thread.

        `sampled_items` of them, the same for every version, are answered greedily; None: all.
        """
        sequences = [
            sequence
            for item in self._items
            for sequence in (*chain(*item.candidates), *item.references, *item.silences)
        ]
        found = dict(zip(sequences, examinee.logprobs(sequences), strict=True))
        answers = {
            answer.item.id: answer for answer in self.ask(examinee, sampled_items, sampled_tokens)
        }
        return AbilityScores(
            suite_sha256=self._sha256,
            items=tuple(score_item(item, found, answers.get(item.item.id)) for item in self._items),
        )

    def ask(
        self, examinee: Examinee, sampled_items: int | None, sampled_tokens: int
    ) -> list[ItemAnswer]:
        """Return the greedy answers of the items that `score` samples, without scoring the rest."""
        prompts = self.prompts(sampled_items, sampled_tokens)
        return self.read(examinee.answers(prompts) if prompts else [], sampled_items)

    def prompts(
        self, sampled_items: int | None, sampled_tokens: int, *, are_measured: bool = False
    ) -> list[GreedyPrompt]:
        """Return what `ask` asks, to be asked together with more."""
        return [
            GreedyPrompt(item.prompt, sampled_tokens, are_measured)
            for item in self._chosen(sampled_items)
        ]

    def read(self, answers: Sequence[SampledAnswer], sampled_items: int | None) -> list[ItemAnswer]:
        """Return the answers to `prompts` with their items."""
        return [
            ItemAnswer(item=item.item, text=answer.text, divergences=answer.divergences)
            for item, answer in zip(self._chosen(sampled_items), answers, strict=True)
        ]

    def _chosen(self, count: int | None) -> list[TokenizedItem]:
        """Return the items to sample."""
        items = [item for item in self._items if item.item.accept]
        if count is None or count >= len(items):
            return items
        indices = sorted(random.Random(self._sha256).sample(range(len(items)), count))  # noqa: S311
        return [items[index] for index in indices]


def tokenize_item(item: AbilityItem, tokens: PromptTokenizer) -> TokenizedItem:
    """Return the item as token ids; raises `InvalidRequest` where it does not fit."""
    row = Fields({}, f"ability item {item.prompt!r:.80}")
    prompt = item.prompt
    if isinstance(prompt, str):
        if tokens.tokenization.tokenizer.chat_template:
            prompt = (ChatMessage(role="user", content=prompt),)
        else:
            prompt = f"{prompt}\n"
    asked = tokens.asked(prompt, row)
    stops = tokens.tokenization.stop_token_ids

    def sequence(text: str) -> TokenSequence:
        # Where a template writes an empty thought before an answer, so is the model asked.
        made = after_thought(tokens.sequence(asked, text, row))
        ids = made.completion_token_ids
        return replace(made, completion_token_ids=without_end(ids, stops) or ids[:1])

    references = list(map(sequence, item.references))
    silences = (replace(references[0], completion_token_ids=(stop,)) for stop in sorted(stops))
    return TokenizedItem(
        item=item,
        prompt=references[0].prompt_token_ids,
        candidates=tuple(
            tuple(without_longer(list(map(sequence, texts)))) for texts in item.candidates
        ),
        references=tuple(without_longer(references)),
        tokens=len(references[0].completion_token_ids),
        silences=tuple(silences),
    )


def without_longer(phrasings: Sequence[TokenSequence]) -> list[TokenSequence]:
    """Return the phrasings that do not begin with another: what begins so is counted with it."""
    found: list[TokenSequence] = []
    for phrasing in sorted(phrasings, key=lambda one: len(one.completion_token_ids)):
        ids = phrasing.completion_token_ids
        beginnings = (one.completion_token_ids for one in found)
        if not any(ids[: len(beginning)] == beginning for beginning in beginnings):
            found.append(phrasing)
    return found


def score_item(
    item: TokenizedItem,
    logprobs: Mapping[TokenSequence, Sequence[float]],
    answer: ItemAnswer | None,
) -> ItemScore:
    """Return the score of an item from the log-probs of its sequences and its greedy answer.

    Raises `InvalidRequest` where a sequence did not fit the model.
    """
    if not all(logprobs[sequence] for sequence in (*chain(*item.candidates), *item.references)):
        raise InvalidRequest(
            f"ability item {item.item.prompt!r:.80} does not fit max_length; raise it, or leave "
            "the item out of the suite",
            param="abilities",
        )

    def said(phrasings: Sequence[TokenSequence]) -> float:
        return log_sum_exp([math.fsum(logprobs[sequence]) for sequence in phrasings])

    choice = is_first = None
    if item.candidates:
        totals = [said(phrasings) for phrasings in item.candidates]
        choice = math.exp(totals[0] - log_sum_exp(totals))
        is_first = all(total < totals[0] for total in totals[1:])
    return ItemScore(
        id=item.item.id,
        kind=item.item.kind,
        nats=min(0.0, said(item.references)) / item.tokens,
        silence=min(1.0, math.fsum(math.exp(math.fsum(logprobs[one])) for one in item.silences)),
        choice=choice,
        is_first=is_first,
        is_right=None if answer is None else answer.is_right,
        answer=None if answer is None else answer.text,
    )


def log_sum_exp(values: Sequence[float]) -> float:
    """Return the log of the sum of the exponentials."""
    most = max(values)
    return most + math.log(math.fsum(math.exp(value - most) for value in values))
