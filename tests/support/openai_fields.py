"""Every field of OpenAI's request bodies: what a test sends, and what must come of it.

`test_request_fields` sends each to the gateway; `docs.render_api` makes the table of docs/api.md.
"""

import json
from functools import partial
from typing import Any

from .request_fields import RequestField, of_a_user, sampled, streamed

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BOTH = (CHAT, TEXT)
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "tuneloop", "messages": [{"role": "user", "content": "hi"}]},
    TEXT: {"model": "tuneloop", "prompt": "hi"},
}
TOOL = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
OpenAIField = partial(RequestField, endpoints=BOTH)

FIELDS = (
    OpenAIField(
        name="model",
        value="tuneloop",
        support="yes",
        note="the policy's name; another is 404 `model_not_found`",
        effect=None,
    ),
    OpenAIField(
        name="messages",
        value=[{"role": "user", "content": [{"type": "text", "text": "parts"}]}],
        support="yes",
        note="at most 2,048; text, or text parts; roles system, developer, user, assistant, tool; "
        "images, audio and files are refused",
        endpoints=(CHAT,),
        effect=lambda request, _: request.chat.messages[0].content == "parts",
    ),
    OpenAIField(
        name="prompt",
        value=[5, 6],
        support="yes",
        note="a text, texts, token ids, or lists of token ids; at most 64",
        endpoints=(TEXT,),
        effect=lambda request, _: list(request.tokens.token_ids) == [5, 6],
    ),
    OpenAIField(
        name="max_completion_tokens",
        value=7,
        support="yes",
        note="wins over `max_tokens`; without either, the setting's default, or less where less "
        "fits",
        endpoints=(CHAT,),
        effect=sampled("max_tokens", 7),
        beside={"max_tokens": 9},
    ),
    OpenAIField(name="max_tokens", value=9, support="yes", effect=sampled("max_tokens", 9)),
    OpenAIField(
        name="temperature",
        value=1.5,
        support="yes",
        note="0 is greedy; between 0 and 0.01 it is 0.01",
        effect=sampled("temperature", 1.5),
    ),
    OpenAIField(
        name="top_p",
        value=0.5,
        support="yes",
        note="0 is greedy",
        effect=sampled("top_p", 0.5),
    ),
    OpenAIField(
        name="n",
        value=2,
        support="yes",
        note="1 to 64; greedy choices are all the same",
        effect=sampled("n", 2),
    ),
    OpenAIField(
        name="stop",
        value="END",
        support="yes",
        note="one string or up to 16, of at most 64 characters",
        effect=lambda request, _: list(request.sampling.stop) == ["END"],
    ),
    OpenAIField(name="seed", value=3, support="yes", effect=sampled("seed", 3)),
    OpenAIField(
        name="presence_penalty",
        value=1.0,
        support="yes",
        effect=sampled("presence_penalty", 1.0),
    ),
    OpenAIField(
        name="frequency_penalty",
        value=1.0,
        support="yes",
        effect=sampled("frequency_penalty", 1.0),
    ),
    OpenAIField(
        name="logit_bias",
        value={"5": 1.0},
        support="yes",
        note="of at most 300 tokens",
        effect=lambda request, _: dict(request.sampling.logit_bias) == {5: 1.0},
    ),
    OpenAIField(
        name="logprobs",
        value=True,
        support="yes",
        note="those of the distribution that was sampled from; the `bytes` of all tokens join to "
        "the answer's UTF-8",
        endpoints=(CHAT,),
        effect=lambda _, response: bool(response.json()["choices"][0]["logprobs"]),
    ),
    OpenAIField(
        name="logprobs",
        value=2,
        support="yes",
        note="0 to 20",
        endpoints=(TEXT,),
        effect=lambda _, response: bool(response.json()["choices"][0]["logprobs"]),
    ),
    OpenAIField(
        name="top_logprobs",
        value=2,
        support="yes",
        note="0 to 20; needs `logprobs`",
        endpoints=(CHAT,),
        effect=sampled("top_logprobs", 2),
        beside={"logprobs": True},
    ),
    OpenAIField(
        name="response_format",
        value=SCHEMA,
        support="yes",
        note="`text`, `json_object` and `json_schema`, which is enforced while sampling with or "
        "without `strict`; not beside tools",
        effect=lambda request, _: (
            json.loads(request.sampling.json_schema or "0") == {"type": "object"}
        ),
    ),
    OpenAIField(
        name="tools",
        value=[TOOL],
        support="yes",
        note="functions, where the model's chat template shows them; custom tools are refused",
        endpoints=(CHAT,),
        effect=lambda request, _: len(request.tool_use.tools) == 1,
    ),
    OpenAIField(
        name="tool_choice",
        value="required",
        support="yes",
        note="`none`, `auto`, `required` or a function; `allowed_tools` is refused",
        endpoints=(CHAT,),
        effect=lambda request, _: request.tool_use.required,
        beside={"tools": [TOOL]},
    ),
    OpenAIField(
        name="parallel_tool_calls",
        value=False,
        support="yes",
        endpoints=(CHAT,),
        effect=lambda request, _: request.tool_use.single,
        beside={"tools": [TOOL]},
    ),
    OpenAIField(name="stream", value=True, support="yes", effect=streamed),
    OpenAIField(
        name="stream_options",
        value={"include_usage": True},
        support="yes",
        note="`include_usage`; the rest is ignored",
        effect=lambda _, response: '"choices":[],"usage"' in response.text,
        beside={"stream": True},
    ),
    OpenAIField(
        name="user",
        value="ann",
        support="yes",
        note="kept as a keyed hash only; by it a user can be forgotten",
        effect=of_a_user,
    ),
    OpenAIField(
        name="safety_identifier",
        value="ann",
        support="yes",
        note="in the place of `user`",
        endpoints=(CHAT,),
        effect=of_a_user,
    ),
    OpenAIField(
        name="metadata",
        value={"train": False, "feature": "search"},
        support="yes",
        note='`{"train": false}` keeps the answer out of learning, `{"task": …}` names a side '
        'task, `{"session_id": …}` the session, `{"best_of": "4"}` asks for [the best of several]'
        "(#the-best-of-several) chats; the rest are [tags](feedback.md#tags)",
        effect=lambda request, _: (
            not request.publish_rollout and dict(request.tags) == {"feature": "search"}
        ),
    ),
    OpenAIField(
        name="reasoning_effort",
        value="high",
        support="yes",
        note="`none`, `minimal`, `low`, `medium`, `high`, `xhigh`, `max`: see "
        "[reasoning models](#reasoning-models); ignored where the model's chat template knows "
        "nothing of it",
        endpoints=(CHAT,),
        effect=lambda request, _: request.template_options["reasoning_effort"] == '"high"',
    ),
    OpenAIField(
        name="prediction",
        value={"type": "content", "content": "x"},
        support="ignored",
        note="asks for speed only",
        endpoints=(CHAT,),
    ),
    OpenAIField(name="service_tier", value="flex", support="ignored", endpoints=(CHAT,)),
    OpenAIField(
        name="store",
        value=True,
        support="ignored",
        note="every rollout is kept, unless it is kept out of training",
        endpoints=(CHAT,),
    ),
    OpenAIField(name="prompt_cache_key", value="k", support="ignored", endpoints=(CHAT,)),
    OpenAIField(name="prompt_cache_options", value={}, support="ignored", endpoints=(CHAT,)),
    OpenAIField(name="prompt_cache_retention", value="24h", support="ignored", endpoints=(CHAT,)),
    OpenAIField(
        name="functions",
        value=[{"name": "f"}],
        support="refused",
        note="OpenAI's older form of `tools`",
        endpoints=(CHAT,),
    ),
    OpenAIField(
        name="function_call",
        value={"name": "f"},
        support="refused",
        note="OpenAI's older form of `tool_choice`",
        endpoints=(CHAT,),
    ),
    OpenAIField(name="modalities", value=["text", "audio"], support="refused", endpoints=(CHAT,)),
    OpenAIField(name="audio", value={"voice": "x"}, support="refused", endpoints=(CHAT,)),
    OpenAIField(name="web_search_options", value={}, support="refused", endpoints=(CHAT,)),
    OpenAIField(name="moderation", value={"model": "x"}, support="refused", endpoints=(CHAT,)),
    OpenAIField(
        name="verbosity",
        value="low",
        support="refused",
        note="`medium`, which asks for nothing, is taken",
        endpoints=(CHAT,),
    ),
    OpenAIField(name="suffix", value="x", support="refused", endpoints=(TEXT,)),
    OpenAIField(name="echo", value=True, support="refused", endpoints=(TEXT,)),
    OpenAIField(name="best_of", value=2, support="refused", endpoints=(TEXT,)),
)
OURS = (
    OpenAIField(
        name="top_k",
        value=5,
        support="yes",
        note="the k most likely tokens; 0 and -1 keep all",
        effect=sampled("top_k", 5),
    ),
    OpenAIField(
        name="policy_version",
        value=2,
        support="yes",
        note="answers with this version, which must be loaded",
        effect=lambda request, _: request.policy_version == 2,
    ),
    OpenAIField(
        name="session_id",
        value="chat-7",
        support="yes",
        note="the conversation that this is a turn of, by your own id: 1 to 128 characters",
        effect=lambda request, _: request.session_id == "chat-7",
    ),
    OpenAIField(
        name="enable_thinking",
        value=False,
        support="yes",
        note="whether the model thinks; refused by name where its chat template has no switch",
        endpoints=(CHAT,),
        effect=lambda request, _: request.template_options["enable_thinking"] == "false",
    ),
    OpenAIField(
        name="thinking_token_budget",
        value=64,
        support="yes",
        note="the most tokens of the thought, which then ends; ignored where the model does not "
        "think",
        endpoints=(CHAT,),
        effect=lambda request, _: request.thinking_budget == 64,
    ),
    OpenAIField(
        name="chat_template_kwargs",
        value={"style": "brief"},
        support="yes",
        note="arguments for the model's chat template: at most 16 that it reads, others are "
        "refused by name, as are those that the service sets",
        endpoints=(CHAT,),
        effect=lambda request, _: request.template_options["style"] == '"brief"',
    ),
)
"""Not OpenAI's; the OpenAI packages send them with `extra_body`."""
