"""Schemas that would end or stall the process are refused before anything compiles them."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tuneloop.errors import InvalidRequest
from tuneloop.generation import schema_limits
from tuneloop.generation.schema_limits import check_pattern, check_schema, depth_of

ARRAYS = '{"type":"array","items":'


def nested_arrays(depth: int) -> str:
    return ARRAYS * depth + '{"type":"integer"}' + "}" * depth


def chain(length: int) -> str:
    """References one to the next, and the last to a string."""
    defs: dict[str, Any] = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(length - 1)}
    defs[f"d{length - 1}"] = {"type": "string"}
    return json.dumps({"$defs": defs, "$ref": "#/$defs/d0"})


def pattern(text: str) -> str:
    return json.dumps({"type": "string", "pattern": text})


def enum(count: int) -> str:
    return json.dumps({"enum": [f"value {n}" for n in range(count)]})


HOSTILE = {
    "nested brackets of a pattern": pattern("(" * 17 + "a" + ")" * 17),
    "100,000 of them": pattern("(" * 50_000 + ")" * 50_000),
    "repetitions in repetitions": pattern("((a{1,50}){1,50}){1,50}"),
    "a long pattern": pattern("a" * 513),
    "a pattern of property names": json.dumps({"patternProperties": {"(" * 20 + ")" * 20: {}}}),
    "a chain of references": chain(70),
    "a reference to itself": json.dumps(
        {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    ),
    "nested arrays": nested_arrays(900),
    "nested lists beside": json.dumps({"default": json.loads("[" * 80 + "]" * 80)}),
    "a long enum": enum(1_001),
    "many enums": json.dumps({"anyOf": [{"enum": list(range(400))} for _ in range(3)]}),
    "a large count": json.dumps({"type": "array", "items": {}, "maxItems": 10_001}),
    "many parts": json.dumps({"properties": {f"p{n}": {"type": "string"} for n in range(3_400)}}),
    "many bytes": json.dumps({"description": "x" * 66_000}),
}

USUAL = {
    "any object": "{}",
    "a recursive type": json.dumps(
        {
            "$defs": {
                "Node": {
                    "type": "object",
                    "properties": {
                        "value": {"type": "integer"},
                        "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                    },
                    "required": ["value", "next"],
                    "additionalProperties": False,
                }
            },
            "$ref": "#/$defs/Node",
        }
    ),
    "a property named pattern": json.dumps(
        {"type": "object", "properties": {"pattern": {"type": "string"}, "enum": {"type": "null"}}}
    ),
    "an e-mail address": pattern(r"^[\w.+-]+@([\w-]+\.){1,4}[A-Za-z]{2,24}$"),
    "brackets that are text": pattern(r"[(]{3}\(\(\(" + r"\(" * 40),
}
"""What applications send."""

AT_THE_BOUNDS = {
    "brackets": pattern("(" * 16 + "a" + ")" * 16),
    "repetitions": pattern("((a{1,10}){1,10}){1,10}"),
    "references": chain(64),
    "arrays": nested_arrays(63),
    "enum": enum(1_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^response_format: ") as refused:
        check_schema(HOSTILE[name], "response_format")
    assert refused.value.param == "response_format"
    assert len(refused.value.message) < 200


@pytest.mark.parametrize("name", [*USUAL, *AT_THE_BOUNDS])
def test_a_usual_schema_is_not(name: str) -> None:
    check_schema((USUAL | AT_THE_BOUNDS)[name], "tools")


@pytest.mark.parametrize("name", [*USUAL, *AT_THE_BOUNDS])
def test_what_is_within_the_bounds_compiles(name: str) -> None:
    """In a process of its own, as a crash would end this one."""
    pytest.importorskip("xgrammar")
    program = "import sys, xgrammar; xgrammar.Grammar.from_json_schema(sys.argv[1])"
    schema = (USUAL | AT_THE_BOUNDS)[name]
    subprocess.run([sys.executable, "-c", program, schema], check=True, timeout=120)


def test_the_depth_of_a_text() -> None:
    assert depth_of("1") == 0
    assert depth_of('{"a": [[], {}]}') == 3
    assert depth_of(r'{"[[[": "]{\"["}') == 1


def test_repetitions_multiply_and_classes_do_not_nest() -> None:
    check_pattern("a{1000}", "p")
    with pytest.raises(InvalidRequest, match=r"up to 2000 times"):
        check_pattern("(a{1000}b){2}", "p")
    check_pattern("[(]" * 20, "p")
    assert schema_limits.MAX_NESTING < 20
