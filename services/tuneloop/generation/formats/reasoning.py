"""Thoughts: the protocols of a format and a parser of what a model thinks before it answers.

A thought is text first: the rollout keeps its tokens as they were sampled, and the caller sees it
apart from the answer. `tags` has the plain format, `harmony` that of gpt-oss.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from tuneloop.errors import InvalidRequest
from tuneloop.rollouts import SamplingParameters

SETTING = "TUNELOOP_GENERATION_REASONING_PARSER"

Grammar = Mapping[str, Any]
"""One format of xgrammar's structural tags, as JSON."""


class ReasoningParser(Protocol):
    """Parses the thought of one completion while it is sampled, one token after the other."""

    @property
    def in_thought(self) -> bool:
        """Whether the model still thinks."""
        ...

    @property
    def thought_tokens(self) -> int:
        """How many tokens lead up to the answer: thought, delimiters, white space after them."""
        ...

    def feed(self, text: str, token_id: int, *, ends: bool) -> tuple[str, str]:
        """Return what a token's text adds to the thought and to the answer.

        `ends` flushes the rest.
        """
        ...


class ReasoningFormat(Protocol):
    """The way in which one family of models writes thoughts."""

    @property
    def marks(self) -> frozenset[str]:
        """Special tokens that it is written with; the others are not shown."""
        ...

    def parser(self, prompt: str) -> ReasoningParser:
        """Return a parser for one completion of a rendered prompt, which may begin the thought."""
        ...

    def after_thought(
        self, answer: Grammar, prompt: str, *, calls: bool, budget: int | None
    ) -> Grammar:
        """Return the grammar of a completion that may think before an `answer` of its own grammar.

        `calls`: the answer is calls of functions. `budget`: the most tokens of the thought; None
        leaves it free.
        """
        ...


def constrain_answer(
    sampling: SamplingParameters,
    reasoning: ReasoningFormat,
    prompt: str,
    *,
    calls: bool,
    budget: int | None,
) -> SamplingParameters:
    """Return `sampling` with a structural tag that holds for the answer, not for the thought.

    A JSON schema stays beside it, to be named in errors. Raises `InvalidRequest` for a structural
    tag of the older form.
    """
    answer: Grammar = {"type": "any_text"}
    if sampling.json_schema:
        answer = schema_grammar(json.loads(sampling.json_schema))
    elif sampling.structural_tag:
        tag = json.loads(sampling.structural_tag)
        if "format" not in tag:
            raise InvalidRequest("structural_tag: needs a format", param="structural_tag")
        answer = tag["format"]
    elif budget is None:
        return sampling
    grammar = reasoning.after_thought(answer, prompt, calls=calls, budget=budget)
    return replace(sampling, structural_tag=structural_tag(grammar))


def structural_tag(grammar: Grammar) -> str:
    """Return a grammar as engines take it."""
    return json.dumps({"type": "structural_tag", "format": grammar})


def schema_grammar(schema: Mapping[str, Any] | bool) -> Grammar:
    """Return the grammar of JSON that fits a schema."""
    return {"type": "json_schema", "json_schema": schema}


def without_text(answer: Grammar, text: str) -> Grammar:
    """Return an answer that is no free text with `text` in it: a thought cannot pass for one."""
    if answer["type"] not in ("any_text", "triggered_tags"):
        return answer
    return {**answer, "excludes": [*answer.get("excludes", ()), text]}


def limited_text(budget: int | None) -> Grammar:
    """Return the grammar of any text, of at most `budget` tokens."""
    return {"type": "any_text"} | ({} if budget is None else {"max_tokens": budget})
