"""`response_format` of a request body, as the JSON schema that the answer must satisfy."""

from typing import Any

from tuneloop.gateway.text import json_text

ANY_OBJECT = '{"type":"object"}'


def json_schema(value: object) -> str:
    """The schema as JSON, empty for plain text; raises `ValueError` for what is no format."""
    if value is None:
        return ""
    kind = value.get("type") if isinstance(value, dict) else None
    match kind:
        case "text":
            return ""
        case "json_object":
            return ANY_OBJECT
        case "json_schema":
            assert isinstance(value, dict)
            return named_schema(value.get("json_schema"))
    raise ValueError("must be an object with type 'text', 'json_object' or 'json_schema'")


def named_schema(value: Any) -> str:
    """The schema of `{"name", "schema", "strict"}`; it holds with or without `strict`."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError("json_schema must be an object with a name and a schema")
    schema = value.get("schema")
    if schema is None:
        return ANY_OBJECT
    if not isinstance(schema, dict):
        raise ValueError("json_schema.schema must be an object")
    return json_text(schema)
