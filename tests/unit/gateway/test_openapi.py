"""`/openapi.json` shows the documents of `tuneloop.api`, each once and with its docstrings."""

from typing import Any

import pytest

from tuneloop.gateway.app import create_app
from tuneloop.gateway.settings import GatewaySettings


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    app = create_app(GatewaySettings(secret="a secret for tests only"))
    documents: dict[str, Any] = app.openapi()["components"]["schemas"]
    return documents


@pytest.mark.parametrize(
    ("document", "member", "text"),
    [
        ("Feedback", "ranking", "Completion ids, best first."),
        # Of a base, of another module, of a request.
        ("FeedbackItem", "ranking", "Completion ids, best first."),
        ("ErrorDetails", "param", "The field at fault."),
        ("ChatRequest", "max_completion_tokens", "Wins over `max_tokens`."),
    ],
)
def test_a_member_is_described_by_its_docstring(
    schemas: dict[str, Any], document: str, member: str, text: str
) -> None:
    assert schemas[document]["properties"][member]["description"] == text


def test_no_two_documents_have_one_name(schemas: dict[str, Any]) -> None:
    assert not [name for name in schemas if name.endswith(("-Input", "-Output"))]


def test_feedback_names_itself_first(schemas: dict[str, Any]) -> None:
    assert [*schemas["Feedback"]["properties"]][:4] == ["id", "status", "kind", "completion_id"]


def test_stop_takes_a_short_text_or_a_few(schemas: dict[str, Any]) -> None:
    text, texts, nothing = schemas["ChatRequest"]["properties"]["stop"]["anyOf"]
    assert (text, nothing) == ({"type": "string", "maxLength": 64}, {"type": "null"})
    assert (texts["maxItems"], texts["items"]["maxLength"]) == (16, 64)
