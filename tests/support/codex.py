"""A request in the shape of Codex's for a model that it does not know, written by hand.

With `web_search = "disabled"`, and without MCP servers, whose tools have another type.
"""

from typing import Any

SESSION = "0199aa00-1111-7222-8333-444455556666"
HEADERS = {
    "accept": "text/event-stream",
    "originator": "codex_cli_rs",
    "user-agent": "codex_cli_rs/0.147.0 (Linux; x86_64)",
    "session_id": SESSION,
}


def tool(name: str, *parameters: str) -> dict[str, Any]:
    """A function with text parameters."""
    return {
        "type": "function",
        "name": name,
        "description": f"{name} for the user.",
        "strict": False,
        "parameters": {
            "type": "object",
            "properties": {p: {"type": "string", "description": p} for p in parameters},
            "required": list(parameters),
            "additionalProperties": False,
        },
    }


def message(role: str, *texts: str) -> dict[str, Any]:
    """A message of one role."""
    kind = "output_text" if role == "assistant" else "input_text"
    content = [{"type": kind, "text": text} for text in texts]
    return {"type": "message", "role": role, "content": content}


TOOLS = [
    tool("exec_command", "cmd", "workdir"),
    tool("write_stdin", "session_id", "chars"),
    tool("update_plan", "explanation", "plan"),
    tool("request_user_input", "questions"),
    tool("view_image", "path"),
    tool("spawn_agent", "message"),
]
WEB_SEARCH = {"type": "web_search", "external_web_access": False}
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edit files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"},
}
BODY: dict[str, Any] = {
    "model": "tuneloop",
    "instructions": "You are a coding agent.\n\n# Tone\nBe brief.",
    "input": [
        message("developer", "<permissions>\nAsk before you write.\n</permissions>"),
        message("user", "# AGENTS.md\nUse pytest.", "<environment>\n/src\n</environment>"),
        message("user", "fix the test"),
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "gAAA"},
        message("assistant", "I'll read it first."),
        {
            "type": "function_call",
            "name": "exec_command",
            "arguments": '{"cmd":"cat test_a.py","workdir":"/src"}',
            "call_id": "call_01",
        },
        {"type": "function_call_output", "call_id": "call_01", "output": "assert False"},
    ],
    "tools": TOOLS,
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": None,
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": SESSION,
    "client_metadata": {"session_id": SESSION},
}
