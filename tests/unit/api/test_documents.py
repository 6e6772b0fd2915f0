"""The documents of the HTTP API: what the client's records know of them, and what they need."""

import ast
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import get_type_hints

import tuneloop.api
from tuneloop.api import feedback, openai, policies
from tuneloop.client import records
from tuneloop.client.answers import Usage

MODULES = sorted(Path(tuneloop.api.__path__[0]).glob("*.py"))


@pytest.mark.parametrize(
    ("record", "documents"),
    [
        (records.PolicyVersion, (policies.PolicyVersion,)),
        (records.FeedbackItem, (feedback.FeedbackItem, feedback.Feedback)),
        (records.Scores, (feedback.Scores,)),
        (Usage, (openai.Usage, openai.CompletionTokensDetails)),
    ],
)
def test_a_record_has_members_of_its_documents(
    record: type[Any], documents: tuple[type[Any], ...]
) -> None:
    members = {name for document in documents for name in get_type_hints(document)}
    assert {field.name for field in fields(record)} <= members


def test_documents_need_the_standard_library_alone() -> None:
    assert len(MODULES) > 4
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.ImportFrom):
                top = (node.module or "").split(".")[:2]
                known = top[0] in sys.stdlib_module_names or top[0] == "typing_extensions"
                assert known or top == ["tuneloop", "api"], f"{module.name}: {node.module}"
