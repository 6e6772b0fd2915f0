"""A request in the shape of Claude Code's: `POST /v1/messages?beta=true`, written by hand."""

from typing import Any

HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,"
    "context-management-2025-06-27,prompt-caching-scope-2026-01-05",
    "anthropic-dangerous-direct-browser-access": "true",
    "user-agent": "claude-cli/2.1.0 (external, cli)",
    "x-app": "cli",
    "x-stainless-retry-count": "0",
    "x-stainless-timeout": "600",
}
USER = "user_0123abcd_account__session_6f1de0b4-1111-2222-3333-444455556666"
KEPT = {"type": "ephemeral"}
DRAFT = "https://json-schema.org/draft/2020-12/schema"


def tool(name: str, *parameters: str) -> dict[str, Any]:
    """A tool with text parameters."""
    return {
        "name": name,
        "description": f"{name} a file.\n\nUsage:\n- Paths must be absolute.",
        "input_schema": {
            "$schema": DRAFT,
            "type": "object",
            "properties": {p: {"type": "string", "description": p} for p in parameters},
            "required": list(parameters),
            "additionalProperties": False,
        },
    }


TOOLS = [
    tool("Task", "description", "prompt", "subagent_type"),
    tool("Bash", "command", "description"),
    tool("Glob", "pattern"),
    tool("Grep", "pattern", "path"),
    tool("Read", "file_path"),
    tool("Edit", "file_path", "old_string", "new_string"),
    tool("Write", "file_path", "content"),
    tool("NotebookEdit", "notebook_path", "new_source"),
    tool("WebFetch", "url", "prompt"),
    tool("WebSearch", "query"),
    tool("TodoWrite", "todos"),
    tool("mcp__github__create_issue", "title", "body") | {"cache_control": KEPT},
]
BODY: dict[str, Any] = {
    "model": "tuneloop",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>\nBe careful.\n</system-reminder>"},
                {"type": "text", "text": "fix the test", "cache_control": KEPT},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I'll read it first."},
                {
                    "type": "tool_use",
                    "id": "toolu_01",
                    "name": "Read",
                    "input": {"file_path": "/src/test_a.py"},
                },
                {
                    "type": "tool_use",
                    "id": "toolu_02",
                    "name": "Bash",
                    "input": {"command": "pytest", "description": "Run the tests"},
                },
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_01",
                    "content": [{"type": "text", "text": "1\tassert False"}],
                },
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_02",
                    "content": "Exit code 1",
                    "is_error": True,
                    "cache_control": KEPT,
                },
                {"type": "text", "text": "<system-reminder>\nGo on.\n</system-reminder>"},
            ],
        },
    ],
    "system": [
        {"type": "text", "text": "You are Claude Code.", "cache_control": KEPT},
        {"type": "text", "text": "You help with code.\n\n# Tone\nBe brief.", "cache_control": KEPT},
    ],
    "tools": TOOLS,
    "metadata": {"user_id": USER},
    "max_tokens": 32000,
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "medium"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "temperature": 1,
    "stream": True,
}
