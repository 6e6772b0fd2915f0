"""What the tests of clients ask for, and which client has a test on which API."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

MESSAGES: Any = [{"role": "user", "content": "tell me a story"}]
ASKED: Any = {"model": "tuneloop", "messages": MESSAGES, "max_tokens": 16}


class Place(BaseModel):
    """What the model must answer with."""

    kind: Literal["river", "sea"]
    deep: bool


class Dive(BaseModel):
    """Dive somewhere."""

    where: Place


DIVE: Any = {
    "type": "function",
    "function": {"name": "Dive", "description": "dive", "parameters": Dive.model_json_schema()},
}
MUST_DIVE: Any = {"type": "function", "function": {"name": "Dive"}}

CLIENTS: Mapping[str, Mapping[str, str]] = {
    "`openai`": {
        "chat": "tests/clients/test_clients.py::test_openai",
        "responses": "tests/clients/test_clients.py::test_responses",
    },
    "`anthropic`": {"messages": "tests/clients/test_clients.py::test_anthropic"},
    "OpenAI Agents SDK": {"responses": "tests/clients/test_newer_apis.py::test_openai_agents"},
    "LangChain (`langchain-openai`, `langchain-anthropic`)": {
        "chat": "tests/clients/test_clients.py::test_langchain",
        "responses": "tests/clients/test_newer_apis.py::test_langchain_on_responses",
        "messages": "tests/clients/test_newer_apis.py::test_langchain_on_messages",
    },
    "LiteLLM": {
        "chat": "tests/clients/test_clients.py::test_litellm",
        "responses": "tests/clients/test_newer_apis.py::test_litellm_on_responses",
        "messages": "tests/clients/test_newer_apis.py::test_litellm_on_messages",
    },
    "Vercel's `ai`": {
        "chat": "tests/clients/test_newer_apis.py::test_the_ai_sdk",
        "responses": "tests/clients/test_newer_apis.py::test_the_ai_sdk",
        "messages": "tests/clients/test_newer_apis.py::test_the_ai_sdk",
    },
    "`compatcanary`": {"chat": "tests/clients/test_clients.py::test_compatcanary"},
    "Codex, a request of its shape": {
        "responses": "tests/integration/test_gateway_responses.py"
        "::test_what_codex_sends_is_answered",
    },
    "Claude Code, a request of its shape": {
        "messages": "tests/integration/test_gateway_anthropic.py"
        "::test_what_claude_code_sends_is_answered",
    },
}
"""Of each client, the test of each API that it speaks; docs/api.md has the table."""
