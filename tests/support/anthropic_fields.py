"""Every field of Anthropic's request bodies: what a test sends, and what must come of it.

`test_request_fields` sends each to the gateway; `docs.render_api` makes the table of docs/api.md.
"""

import json
from functools import partial
from typing import Any

from .request_fields import RequestField, of_a_user, sampled, streamed

MESSAGES = "/v1/messages"
BODY: dict[str, Any] = {
    "model": "tuneloop",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "hi"}],
}
TOOL = {"name": "f", "input_schema": {"type": "object"}}
FORMAT = {"type": "json_schema", "schema": {"type": "object"}}
AnthropicField = partial(RequestField, endpoints=(MESSAGES,))

FIELDS = (
    AnthropicField(
        name="model",
        value="tuneloop",
        support="yes",
        note="the policy's name; another is 404",
    ),
    AnthropicField(
        name="messages",
        value=[{"role": "user", "content": [{"type": "text", "text": "block"}]}],
        support="yes",
        note="at most 2,048; blocks `text`, `tool_use`, `tool_result`; thoughts of earlier turns "
        "go to the chat template, which most often leaves them out; `is_error` is not shown to the "
        "model; images, documents and other blocks are refused, and so is a last turn of the "
        "assistant (prefill)",
        effect=lambda request, _: request.chat.messages[0].content == "block",
    ),
    AnthropicField(
        name="max_tokens",
        value=7,
        support="yes",
        note="must be there; less where less fits",
        effect=sampled("max_tokens", 7),
    ),
    AnthropicField(
        name="system",
        value=[{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
        support="yes",
        note="text or text blocks, which a blank line joins",
        effect=lambda request, _: request.chat.messages[0].content == "be brief",
    ),
    AnthropicField(
        name="tools",
        value=[TOOL],
        support="yes",
        note="those that the caller runs, as chat's `tools`; Anthropic's own are refused",
        effect=lambda request, _: len(request.tool_use.tools) == 1,
    ),
    AnthropicField(
        name="tool_choice",
        value={"type": "any", "disable_parallel_tool_use": True},
        support="yes",
        effect=lambda request, _: request.tool_use.required and request.tool_use.single,
        beside={"tools": [TOOL]},
    ),
    AnthropicField(
        name="stop_sequences",
        value=["END"],
        support="yes",
        note="up to 16, of at most 64 characters",
        effect=lambda request, _: list(request.sampling.stop) == ["END"],
    ),
    AnthropicField(
        name="temperature",
        value=1.5,
        support="yes",
        note="0 to 2",
        effect=sampled("temperature", 1.5),
    ),
    AnthropicField(name="top_p", value=0.5, support="yes", effect=sampled("top_p", 0.5)),
    AnthropicField(name="top_k", value=5, support="yes", effect=sampled("top_k", 5)),
    AnthropicField(name="stream", value=True, support="yes", effect=streamed),
    AnthropicField(
        name="metadata",
        value={"user_id": "ann", "feature": "search"},
        support="yes",
        note="`user_id` is chat's `user`; the rest as in chat's `metadata`",
        effect=lambda request, response: (
            of_a_user(request, response) and dict(request.tags) == {"feature": "search"}
        ),
    ),
    AnthropicField(
        name="output_config",
        value={"format": FORMAT, "effort": "low"},
        support="yes",
        note="`format` as chat's `response_format`, `effort` as its `reasoning_effort`",
        effect=lambda request, _: (
            json.loads(request.sampling.json_schema or "0") == {"type": "object"}
        ),
    ),
    AnthropicField(
        name="thinking",
        value={"type": "enabled", "budget_tokens": 1024},
        support="yes",
        note="`enabled` with a budget that holds, `adaptive`, `between_tools` (as `adaptive`), "
        "`disabled`: see [reasoning models](#reasoning-models); ignored where the model does not "
        "think",
        effect=lambda request, _: (
            request.thinking_budget == 1024
            and request.template_options["reasoning_effort"] == '"medium"'
        ),
    ),
    AnthropicField(
        name="cache_control",
        value={"type": "ephemeral"},
        support="ignored",
        note="here and in blocks: prefixes are kept without being asked for",
    ),
    AnthropicField(
        name="context_management",
        value={"edits": [{"type": "clear_tool_uses_20250919"}]},
        support="ignored",
        note="the conversation is taken as it is sent",
    ),
    AnthropicField(name="service_tier", value="standard_only", support="ignored"),
    AnthropicField(name="speed", value="fast", support="ignored"),
    AnthropicField(name="diagnostics", value={"previous_message_id": "x"}, support="ignored"),
    AnthropicField(name="user_profile_id", value="x", support="ignored"),
    AnthropicField(name="workspace_id", value="x", support="ignored"),
    AnthropicField(name="billing_policy", value={}, support="ignored"),
    AnthropicField(name="fallbacks", value=[{"model": "x"}], support="ignored"),
    AnthropicField(name="fallback_credit_token", value="x", support="ignored"),
    AnthropicField(name="container", value="x", support="refused"),
    AnthropicField(
        name="mcp_servers",
        value=[{"type": "url", "url": "http://localhost", "name": "x"}],
        support="refused",
    ),
    AnthropicField(name="inference_geo", value="eu", support="refused"),
    AnthropicField(name="compaction", value={"type": "auto"}, support="refused"),
    AnthropicField(name="thread", value={"id": "x"}, support="refused"),
    AnthropicField(
        name="output_format",
        value=FORMAT,
        support="refused",
        note="its name is `output_config.format` now",
    ),
)
OURS = (
    AnthropicField(
        name="policy_version",
        value=2,
        support="yes",
        note="answers with this version, which must be loaded",
        effect=lambda request, _: request.policy_version == 2,
    ),
    AnthropicField(
        name="session_id",
        value="chat-7",
        support="yes",
        note="the conversation that this is a turn of, by your own id: 1 to 128 characters",
        effect=lambda request, _: request.session_id == "chat-7",
    ),
)
"""Not Anthropic's; the `anthropic` packages send them with `extra_body`."""
