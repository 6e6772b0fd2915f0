"""`response_format` of a request body: the form that the answer must have."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tuneloop.text.unicode import json_text

ANY_OBJECT = '{"type":"object"}'


class NamedSchema(BaseModel):
    """A JSON schema; it holds with or without `strict`."""

    name: str
    description: str | None = None
    definition: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @field_validator("definition")
    @classmethod
    def check_json(cls, definition: dict[str, Any] | None) -> dict[str, Any] | None:
        """Refuse a schema that cannot be sent."""
        json_text(definition)
        return definition


class ResponseFormat(BaseModel):
    """Plain text, any JSON object, or JSON of a schema."""

    model_config = ConfigDict(hide_input_in_errors=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def check_schema(self) -> Self:
        """Check that the type `json_schema` has a schema."""
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing")
        return self


def schema_text(response_format: ResponseFormat | None) -> str:
    """Return the JSON schema that the answer must satisfy; empty for plain text."""
    if response_format is None or response_format.type == "text":
        return ""
    named = response_format.json_schema if response_format.type == "json_schema" else None
    if named is None or named.definition is None:
        return ANY_OBJECT
    return json_text(named.definition)
