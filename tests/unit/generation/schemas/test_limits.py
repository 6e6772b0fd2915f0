"""Schemas that would end or stall the process are refused before anything compiles them."""

import json
from typing import Any

import pytest

from tuneloop.errors import InvalidRequest
from tuneloop.generation.schemas import limits
from tuneloop.generation.schemas.limits import check_pattern, check_schema, check_schemas, depth_of

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
    "a UUID": pattern("^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"),
    "a list of fields": pattern(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})? .{0,500}"),
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


def test_the_schemas_of_all_tools_have_a_bound_together() -> None:
    one = json.dumps({"description": "x" * 50_000})
    check_schemas([one] * 5, "tools")
    with pytest.raises(InvalidRequest, match=r"^tools: the schemas have 300\d\d\d bytes"):
        check_schemas([one] * 6, "tools")


def test_each_chain_of_references_is_followed_once() -> None:
    """Thousands of references into one chain are legal, and cost one walk of it."""
    document = json.loads(chain(64))
    document["prefixItems"] = [{"$ref": "#/$defs/d0"} for _ in range(2_000)]
    check_schema(json.dumps(document), "response_format")
    document["$defs"]["d63"] = {"$ref": "#/$defs/d9"}
    with pytest.raises(InvalidRequest, match=r"leads to itself"):
        check_schema(json.dumps(document), "response_format")


def test_the_depth_of_a_text() -> None:
    assert depth_of("1") == 0
    assert depth_of('{"a": [[], {}]}') == 3
    assert depth_of(r'{"[[[": "]{\"["}') == 1


def test_repetitions_multiply_and_classes_do_not_nest() -> None:
    check_pattern("a{1000}", "p")
    with pytest.raises(InvalidRequest, match=r"up to 2000 times"):
        check_pattern("(a{1000}b){2}", "p")
    with pytest.raises(InvalidRequest, match=r"up to 1200 times"):
        check_pattern("((ab){30}c|d{2}){40}", "p")
    check_pattern("a{1000}b{1000}(c{500}){2}", "p")
    check_pattern("[(]" * 20, "p")
    check_pattern(r"[\]({9}]{1000})", "p")
    assert limits.MAX_NESTING < 20
