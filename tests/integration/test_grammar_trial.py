"""Grammars within the bounds that would still hurt are refused by a trial in another process."""

import asyncio
import json
import os
import signal
import string
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tuneloop.errors import InvalidRequest, Overloaded
from tuneloop.generation.schemas import trial_process
from tuneloop.generation.schemas.limits import check_schema
from tuneloop.generation.schemas.trial import MAX_WAITING_OF_CALLER, GrammarTrial, Turns, Waiting
from tuneloop.rollouts import SamplingParameters

pytest.importorskip("xgrammar")
# With services, one after another: a compiler's processor time grows where cores are shared.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.services]


def pattern(text: str) -> dict[str, Any]:
    return {"type": "string", "pattern": text}


WITHIN_THE_BOUNDS = {
    "anything, twenty times": pattern(".{0,500}.*" * 20),
    "words that may be split anywhere": pattern(r"(\w+\s*){1,300}"),
}
"""Hostile schemas that `check_schema` lets pass."""

BEYOND_THEM = {
    "nested brackets of a pattern": pattern("(" * 50_000 + ")" * 50_000),
    "a long chain of references": {
        "$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(40_000)}
        | {"d40000": {"type": "string"}},
        "$ref": "#/$defs/d0",
    },
    "a long enum": {"enum": [f"value {n}" for n in range(50_000)]},
}
"""What the trial has to survive if a bound is missing."""


def nested_arrays(depth: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


HARMLESS = {
    "any object": {},
    "a recursive type": {
        "$defs": {
            "Node": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
            }
        },
        "$ref": "#/$defs/Node",
    },
    "brackets at their bound": pattern("(" * 16 + "a" + ")" * 16),
    "arrays at their bound": nested_arrays(63),
    "references at their bound": {
        "$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(63)}
        | {"d63": {"type": "string"}},
        "$ref": "#/$defs/d0",
    },
    "a person": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 80},
            "age": {"type": "integer", "minimum": 0},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 10},
        },
        "required": ["name", "age", "tags"],
    },
    "an e-mail address": pattern(r"^[\w.+-]+@([\w-]+\.){1,4}[A-Za-z]{2,24}$"),
    "an enum at its bound": {"enum": [f"value {n}" for n in range(1_000)]},
    "what the compiler refuses in words": pattern("(?<=a)b"),
}


LETTERS = string.ascii_letters[:36]


def bytes_tokenizer() -> Any:
    """A tokenizer of 256 bytes, 42,000 words of one letter and blanks, and one end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["Ġ" * k + a * m for a in LETTERS for k in range(20) for m in range(2, 60)]
    vocabulary = {token: n for n, token in enumerate([*letters, *words, "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trial() -> AsyncIterator[GrammarTrial]:
    tokenizer = bytes_tokenizer()
    trial = GrammarTrial(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    yield trial
    await trial.close()


def constrained_by(schema: Any) -> SamplingParameters:
    return SamplingParameters(json_schema=json.dumps(schema))


@pytest.mark.parametrize("name", WITHIN_THE_BOUNDS)
async def test_a_schema_within_the_bounds_that_costs_seconds_is_refused(
    trial: GrammarTrial, name: str
) -> None:
    check_schema(json.dumps(WITHIN_THE_BOUNDS[name]), "response_format")
    with pytest.raises(InvalidRequest, match="takes more than") as refused:
        await trial.check(constrained_by(WITHIN_THE_BOUNDS[name]), name)
    assert refused.value.param == "response_format"


@pytest.mark.parametrize("name", BEYOND_THEM)
async def test_what_ends_a_compiler_is_a_refusal(trial: GrammarTrial, name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^response_format: the grammar "):
        await trial.check(constrained_by(BEYOND_THEM[name]), "key")


@pytest.mark.parametrize("name", HARMLESS)
async def test_a_harmless_schema_passes(trial: GrammarTrial, name: str) -> None:
    check_schema(json.dumps(HARMLESS[name]), "response_format")
    await trial.check(constrained_by(HARMLESS[name]), "key")


async def test_the_schemas_of_tools_are_tried_together(trial: GrammarTrial) -> None:
    def tag(schema: Any) -> SamplingParameters:
        content = {"type": "json_schema", "json_schema": schema}
        form = {"type": "tag", "begin": "<call>", "content": content, "end": "</call>"}
        text = json.dumps({"type": "structural_tag", "format": form})
        return SamplingParameters(structural_tag=text)

    await trial.check(tag(HARMLESS["a person"]), "key")
    with pytest.raises(InvalidRequest) as refused:
        await trial.check(tag(WITHIN_THE_BOUNDS["anything, twenty times"]), "key")
    assert refused.value.param == "tools"


async def test_verdicts_are_kept_and_the_process_comes_back(trial: GrammarTrial) -> None:
    known, new = constrained_by({"title": "known"}), constrained_by({"title": "new"})
    await trial.check(known, "key")
    assert trial.process is not None
    first = trial.process.pid
    os.kill(first, signal.SIGKILL)
    await trial.process.wait()
    await trial.check(known, "key")
    assert trial.process.pid == first
    await trial.check(new, "key")
    assert trial.process.pid != first


async def test_without_a_grammar_no_process_starts() -> None:
    trial = GrammarTrial(None, 0, ())
    await trial.check(SamplingParameters(), "key")
    assert trial.process is None


async def test_callers_take_turns_and_one_fills_only_its_own_queue() -> None:
    turns = Turns()
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    for number in range(MAX_WAITING_OF_CALLER):
        turns.add("greedy", Waiting(f"greedy {number}".encode(), future))
    with pytest.raises(Overloaded):
        turns.add("greedy", Waiting(b"one more", future))
    turns.add("modest", Waiting(b"modest", future))
    taken = [turns.take() for _ in range(3)]
    assert [w.line for w in taken if w] == [b"greedy 0", b"modest", b"greedy 1"]


async def test_a_fork_that_is_killed_is_fatal() -> None:
    assert trial_process.verdict_of(lambda: None) == trial_process.FINE
    assert trial_process.verdict_of(lambda: os.kill(os.getpid(), signal.SIGKILL)) == "fatal"
    assert trial_process.verdict_of(lambda: print(len(bytearray(2**34)))) == trial_process.HEAVY
