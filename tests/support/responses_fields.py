"""Every field of `/v1/responses`: what a test sends, and what must come of it.

`test_request_fields` sends each to the gateway; `docs.render_api` makes the table of docs/api.md.
"""

import json
from functools import partial
from typing import Any

from .request_fields import RequestField, of_a_user, sampled, streamed

RESPONSES = "/v1/responses"
BODY: dict[str, Any] = {"model": "tuneloop", "input": "hi"}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
FORMAT = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
ResponsesField = partial(RequestField, endpoints=(RESPONSES,))

FIELDS = (
    ResponsesField(
        name="model",
        value="tuneloop",
        support="yes",
        note="the policy's name; another is 404 `model_not_found`",
    ),
    ResponsesField(
        name="input",
        value=[{"role": "user", "content": [{"type": "input_text", "text": "part"}]}],
        support="yes",
        note="text, or at most 2,048 items: `message` (with `input_text` and `output_text`), "
        "`function_call`, `function_call_output`, `item_reference` (see below); `reasoning`, which "
        "goes to the chat template; images, files and other items are refused",
        effect=lambda request, _: request.chat.messages[0].content == "part",
    ),
    ResponsesField(
        name="instructions",
        value="be brief",
        support="yes",
        note="the system's message, before all others; a next turn does not inherit it",
        effect=lambda request, _: request.chat.messages[0].content == "be brief",
    ),
    ResponsesField(
        name="previous_response_id",
        value=None,
        support="yes",
        note="goes on from a response of the last hour, see below",
    ),
    ResponsesField(
        name="store",
        value=False,
        support="yes",
        note="`false`: no next turn may name this response. Rollouts are kept either way, see "
        "`metadata`",
        effect=lambda request, _: request.session_id == "",
    ),
    ResponsesField(
        name="max_output_tokens",
        value=7,
        support="yes",
        note="without it, the setting's default, or less where less fits",
        effect=sampled("max_tokens", 7),
    ),
    ResponsesField(
        name="temperature",
        value=1.5,
        support="yes",
        note="0 is greedy; between 0 and 0.01 it is 0.01",
        effect=sampled("temperature", 1.5),
    ),
    ResponsesField(
        name="top_p",
        value=0.5,
        support="yes",
        note="0 is greedy",
        effect=sampled("top_p", 0.5),
    ),
    ResponsesField(
        name="text",
        value={"format": FORMAT},
        support="yes",
        note="`format` as chat's `response_format`; a `verbosity` other than `medium` is refused",
        effect=lambda request, _: (
            json.loads(request.sampling.json_schema or "0") == {"type": "object"}
        ),
    ),
    ResponsesField(
        name="tools",
        value=[TOOL],
        support="yes",
        note="functions, as chat's `tools`; OpenAI's own (`web_search`, `file_search`, `mcp`, …), "
        "`custom`, `local_shell` and `namespace` are refused",
        effect=lambda request, _: len(request.tool_use.tools) == 1,
    ),
    ResponsesField(
        name="tool_choice",
        value={"type": "function", "name": "f"},
        support="yes",
        note="`none`, `auto`, `required` or a function; other kinds are refused",
        effect=lambda request, _: request.tool_use.name == "f",
        beside={"tools": [TOOL]},
    ),
    ResponsesField(
        name="parallel_tool_calls",
        value=False,
        support="yes",
        effect=lambda request, _: request.tool_use.single,
        beside={"tools": [TOOL]},
    ),
    ResponsesField(name="stream", value=True, support="yes", effect=streamed),
    ResponsesField(
        name="user",
        value="ann",
        support="yes",
        note="kept as a keyed hash only; by it a user can be forgotten",
        effect=of_a_user,
    ),
    ResponsesField(
        name="safety_identifier",
        value="ann",
        support="yes",
        note="in the place of `user`",
        effect=of_a_user,
    ),
    ResponsesField(
        name="metadata",
        value={"train": False, "feature": "search"},
        support="yes",
        note="as chat's `metadata`; sent back",
        effect=lambda request, _: (
            not request.publish_rollout and dict(request.tags) == {"feature": "search"}
        ),
    ),
    ResponsesField(
        name="reasoning",
        value={"effort": "high", "summary": "auto"},
        support="yes",
        note="`effort` as chat's `reasoning_effort`; with a `summary` the thought comes as its own "
        "summary; the rest is ignored",
        effect=lambda request, _: request.template_options["reasoning_effort"] == '"high"',
    ),
    ResponsesField(
        name="include",
        value=["reasoning.encrypted_content"],
        support="ignored",
        note="nothing is encrypted: send thoughts back as they came; "
        "`message.output_text.logprobs` is refused by name",
    ),
    ResponsesField(
        name="context_management",
        value=[{"type": "compaction", "compact_threshold": 1000}],
        support="ignored",
        note="the conversation is taken as it is sent",
    ),
    ResponsesField(name="max_tool_calls", value=3, support="ignored", note="of OpenAI's own tools"),
    ResponsesField(name="stream_options", value={"include_obfuscation": False}, support="ignored"),
    ResponsesField(name="service_tier", value="flex", support="ignored"),
    ResponsesField(name="prompt_cache_key", value="k", support="ignored"),
    ResponsesField(name="prompt_cache_options", value={}, support="ignored"),
    ResponsesField(name="prompt_cache_retention", value="24h", support="ignored"),
    ResponsesField(name="access_programs", value={"cyber": "standard"}, support="ignored"),
    ResponsesField(name="image", value={"context_compression": "auto"}, support="ignored"),
    ResponsesField(name="background", value=True, support="refused"),
    ResponsesField(
        name="conversation",
        value="conv_1",
        support="refused",
        note="conversations are not stored; `session_id` names one",
    ),
    ResponsesField(name="prompt", value={"id": "pmpt_1"}, support="refused"),
    ResponsesField(
        name="truncation",
        value="auto",
        support="refused",
        note="`disabled`, which asks for nothing, is taken",
    ),
    ResponsesField(name="top_logprobs", value=2, support="refused"),
    ResponsesField(name="moderation", value={"model": "x"}, support="refused"),
)
OURS = (
    ResponsesField(
        name="top_k",
        value=5,
        support="yes",
        note="the k most likely tokens; 0 and -1 keep all",
        effect=sampled("top_k", 5),
    ),
    ResponsesField(
        name="policy_version",
        value=2,
        support="yes",
        note="answers with this version, which must be loaded",
        effect=lambda request, _: request.policy_version == 2,
    ),
    ResponsesField(
        name="session_id",
        value="chat-7",
        support="yes",
        note="the conversation that this is a turn of, by your own id: 1 to 128 characters",
        effect=lambda request, _: request.session_id == "chat-7",
    ),
)
"""Not OpenAI's; the OpenAI packages send them with `extra_body`."""
