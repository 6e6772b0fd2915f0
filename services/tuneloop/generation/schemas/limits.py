"""Bounds of the JSON schemas that requests bring, checked before any library compiles them.

Compilers of grammars are recursive native code: deep nesting overflows their stack, which ends the
process and everybody's answers, and large alternatives take them minutes. So a schema is walked
here first, without recursion. What is within the bounds compiles in well under a second.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tuneloop.errors import InvalidRequest

MAX_BYTES = 64 * 1024
MAX_TOTAL_BYTES = 256 * 1024
"""Of the schemas of all tools."""
MAX_DEPTH = 64
MAX_NODES = 10_000
"""Objects, lists and values in a schema."""
MAX_ENUM = 1_000
"""Values of all enums together."""
MAX_REFERENCES = 64
"""Of `$ref` to `$ref`, in a chain."""
MAX_PATTERN = 512
"""Characters of a regular expression."""
MAX_NESTING = 16
"""Brackets within brackets of a regular expression."""
MAX_REPEATS = 1_000
"""Copies that its counted repetitions, one within the other, make of a part."""
MAX_COUNT = 10_000
"""Of `maxItems`, `minLength` and the like."""
COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
OPENING = re.compile(r'[\[{]|"(?:[^"\\]|\\.)*"|[\]}]')
REPETITION = re.compile(r"\{(\d*)(,?)(\d*)\}")


def check_schemas(texts: Sequence[str], param: str) -> None:
    """Raise `InvalidRequest` if one of the schemas, or all together, exceed a bound."""
    total = sum(len(text.encode()) for text in texts)
    if total > MAX_TOTAL_BYTES:
        raise _beyond(param, f"the schemas have {total} bytes", MAX_TOTAL_BYTES)
    for text in texts:
        check_schema(text, param)


def check_schema(text: str, param: str) -> None:
    """Raise `InvalidRequest` naming `param` if a schema or structural tag exceeds a bound."""
    size = len(text.encode())
    if size > MAX_BYTES:
        raise _beyond(param, f"it has {size} bytes", MAX_BYTES)
    if (depth := depth_of(text)) > MAX_DEPTH:
        raise _beyond(param, f"it is nested {depth} deep", MAX_DEPTH)
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"{param}: not JSON: {error}", param=param) from error
    nodes = enums = 0
    references: set[str] = set()
    for node in walk(document):
        nodes += 1
        if not isinstance(node, dict):
            continue
        values = node.get("enum")
        enums += len(values) if isinstance(values, list) else 0
        _check_node(node, param)
        if isinstance(reference := node.get("$ref"), str):
            references.add(reference)
    if nodes > MAX_NODES:
        raise _beyond(param, f"it has {nodes} parts", MAX_NODES)
    if enums > MAX_ENUM:
        raise _beyond(param, f"its enums have {enums} values", MAX_ENUM)
    _check_references(references, document, param)


def _check_node(node: Mapping[str, Any], param: str) -> None:
    patterns = [node["pattern"]] if isinstance(node.get("pattern"), str) else []
    properties = node.get("patternProperties")
    for pattern in (*patterns, *(properties if isinstance(properties, dict) else ())):
        check_pattern(pattern, param)
    for name in COUNTS:
        count = node.get(name)
        if isinstance(count, int | float) and count > MAX_COUNT:
            raise _beyond(param, f"{name} is {count:g}", MAX_COUNT)


def check_pattern(pattern: str, param: str) -> None:
    """Raise `InvalidRequest` if a regular expression is too long, too deep or repeats too much."""
    if len(pattern) > MAX_PATTERN:
        raise _beyond(param, f"a pattern has {len(pattern)} characters", MAX_PATTERN)
    deepest = position = 0
    in_class = False
    open_groups = [1]
    """The most copies of a part within each bracket that is open."""
    last = 1
    """The same of what a repetition would repeat."""
    while position < len(pattern):
        character = pattern[position]
        if in_class:
            in_class = character != "]"
            position += character == "\\"
        elif found := REPETITION.match(pattern, position):
            last *= max(1, *(int(n[:9]) for n in (found[1], found[3]) if n))
            open_groups[-1] = max(open_groups[-1], last)
            position = found.end() - 1
        elif character == "(":
            open_groups.append(1)
            deepest = max(deepest, len(open_groups) - 1)
        elif character == ")" and len(open_groups) > 1:
            last = open_groups.pop()
            open_groups[-1] = max(open_groups[-1], last)
        else:
            in_class = character == "["
            position += character == "\\"
            last = 1
        position += 1
    if deepest > MAX_NESTING:
        raise _beyond(param, f"a pattern has brackets {deepest} deep", MAX_NESTING)
    if (repeats := max(open_groups)) > MAX_REPEATS:
        raise _beyond(param, f"a pattern repeats its parts up to {repeats} times", MAX_REPEATS)


def _check_references(references: Iterable[str], document: Any, param: str) -> None:
    """Raise `InvalidRequest` for a chain of references that is too long, or leads to itself."""
    next_of: dict[str, str | None] = {}
    for reference in references:
        target = _target_of(reference, document) if reference.startswith("#") else None
        found = target.get("$ref") if isinstance(target, dict) else None
        next_of[reference] = found if isinstance(found, str) else None
    lengths: dict[str, int] = {}
    for start in next_of:
        chain: list[str] = []
        at: str | None = start
        while at is not None and at not in lengths and len(chain) <= MAX_REFERENCES:
            chain.append(at)
            at = next_of.get(at)
        length = 0 if at is None else lengths.get(at, 0)
        for reference in reversed(chain):
            length += 1
            lengths[reference] = length
        if length > MAX_REFERENCES:
            raise InvalidRequest(
                f"{param}: a chain of $ref is longer than {MAX_REFERENCES}, or leads to itself",
                param=param,
            )


def _target_of(reference: str, document: Any) -> Any:
    """Return what a JSON pointer (RFC 6901) leads to, or None."""
    found = document
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, dict) else None
    return found


def depth_of(text: str) -> int:
    """Return how deep the brackets of a JSON text are nested, without parsing it."""
    depth = deepest = 0
    for token in OPENING.finditer(text):
        first = token[0][0]
        if first in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in "]}":
            depth -= 1
    return deepest


def walk(document: Any) -> Iterator[Any]:
    """Yield a JSON value and all values in it, without recursion."""
    waiting = [document]
    while waiting:
        value = waiting.pop()
        yield value
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _beyond(param: str, what: str, limit: int) -> InvalidRequest:
    return InvalidRequest(f"{param}: {what}; at most {limit}", param=param)
