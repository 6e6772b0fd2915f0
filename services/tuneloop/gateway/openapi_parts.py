"""Parts of the OpenAPI document that no type in the code says: answers, examples, free forms."""

from collections.abc import Mapping
from typing import Any

from tuneloop.gateway.edge.edge import exposed_headers

Document = dict[str, Any]

STRING: Document = {"type": "string"}
INTEGER: Document = {"type": "integer"}
VERSION: Document = {"type": "integer", "description": "The policy version that answered."}
SPANS: Document = {
    "type": "array",
    "items": {"$ref": "#/components/schemas/PolicyVersionSpan"},
    "description": "Only where more than one version sampled the tokens.",
}
MODEL = "tuneloop"
COMPLETION_ID = "chatcmpl-0123456789abcdef01234567fedcba98765432100123456789abcdef0123"


def nullable(schema: Document) -> Document:
    """The schema, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def listed(schema: Document) -> Document:
    """An array of it."""
    return {"type": "array", "items": schema}


def ref(name: str) -> Document:
    """A schema of the document by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def of(**properties: Document) -> Document:
    """An object that has these properties, and maybe more."""
    return maybe(**properties) | {"required": list(properties)}


def maybe(**properties: Document) -> Document:
    """An object that may have these properties, and more."""
    return {"type": "object", "properties": properties}


def answer(object_name: str, usage: Document, choice: Document) -> Document:
    """A completion or a chunk of one."""
    return of(
        id=STRING,
        object={"const": object_name},
        created={"type": "integer", "description": "Unix seconds."},
        model=STRING,
        policy_version=VERSION,
        choices=listed(choice),
        usage=usage,
    )


CHOICE = {
    "index": INTEGER,
    "completion_id": {"type": "string", "description": "What feedback on this choice names."},
    "logprobs": nullable({"type": "object"}),
}
FINISH: Document = {"enum": ["stop", "length", "tool_calls", "abort"]}
CALLS = listed(of(type={"const": "function"}, function={"type": "object"}))


def choice(finish: Document, **members: Document) -> Document:
    """A choice, with `members` of its kind."""
    document = of(**CHOICE, finish_reason=finish, **members)
    document["properties"]["policy_version_spans"] = SPANS
    return document


chunk = answer(
    "chat.completion.chunk",
    nullable(ref("Usage")),
    choice(
        nullable(FINISH),
        delta=maybe(role=STRING, content=nullable(STRING), tool_calls=CALLS),
    ),
)
# A chunk has usage only where it was asked for.
chunk["required"].remove("usage")

schemas: Mapping[str, Document] = {
    "Error": of(
        error=of(
            message=STRING,
            type=STRING,
            param=nullable({"type": "string", "description": "The field at fault."}),
            code={"type": "string", "description": "A stable word for programs."},
        )
    ),
    "Usage": of(prompt_tokens=INTEGER, completion_tokens=INTEGER, total_tokens=INTEGER),
    "PolicyVersionSpan": of(policy_version=VERSION, start=INTEGER, end=INTEGER),
    "ChatCompletion": answer(
        "chat.completion",
        ref("Usage"),
        choice(FINISH, message=of(role={"const": "assistant"}, content=nullable(STRING))),
    ),
    "ChatCompletionChunk": chunk,
    "Completion": answer("text_completion", ref("Usage"), choice(FINISH, text=STRING)),
    "Model": of(
        id=STRING,
        object={"const": "model"},
        created=INTEGER,
        owned_by=STRING,
        root=STRING,
        max_model_len=INTEGER,
        policy_version=VERSION,
    ),
    "ModelList": of(object={"const": "list"}, data=listed(ref("Model"))),
    "FeedbackAccepted": of(id=STRING, status={"const": "accepted"}),
    "FeedbackRetracted": of(id=STRING, status={"const": "retracted"}),
    "FeedbackBatchResult": of(
        object={"const": "list"},
        data=listed(
            {
                "oneOf": [
                    ref("FeedbackAccepted"),
                    of(error={"type": "object"}, status_code=INTEGER),
                ]
            }
        ),
    ),
    "Scores": of(
        scores=listed(nullable({"type": "number"})),
        reward_model_version=INTEGER,
        results=listed(listed({"type": "object"})),
    ),
    "Activated": of(policy=STRING, policy_version=VERSION),
}

answers: Mapping[tuple[str, str], tuple[str, str]] = {
    ("post", "/v1/chat/completions"): ("200", "ChatCompletion"),
    ("post", "/v1/completions"): ("200", "Completion"),
    ("get", "/v1/models"): ("200", "ModelList"),
    ("get", "/v1/models/{model_id}"): ("200", "Model"),
    ("post", "/v1/feedback"): ("202", "FeedbackAccepted"),
    ("delete", "/v1/feedback/{feedback_id}"): ("200", "FeedbackRetracted"),
    ("post", "/v1/feedback/batch"): ("202", "FeedbackBatchResult"),
    ("post", "/v1/score"): ("200", "Scores"),
    ("post", "/v1/policies/{version}/promote"): ("200", "Activated"),
    ("post", "/v1/policies/rollback"): ("200", "Activated"),
}
"""Status and schema of what an operation answers; the others answer some JSON object."""

errors: Mapping[str, str] = {
    "400": "The request is wrong; `param` names the field.",
    "401": "No key, a wrong or a revoked one.",
    "403": "The key lacks the scope, or a foreign page calls where no key is set.",
    "404": "No such thing, or a completion id that was not given here.",
    "409": "The id or the idempotency key came with another body before.",
    "412": "Not in this state: a version that is not loaded, for one.",
    "413": "The body is too large.",
    "429": "A limit of the key is used up, or the service has all that it can do: see Retry-After.",
    "503": "A part is down or starting: see Retry-After.",
}

conversation: Document = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}
examples: Mapping[str, Mapping[str, Document]] = {
    "/v1/chat/completions": {
        "whole": conversation,
        "stream": conversation | {"stream": True, "stream_options": {"include_usage": True}},
        "kept out of learning": conversation | {"metadata": {"train": False}},
    },
    "/v1/completions": {"text": {"model": MODEL, "prompt": "The capital of France is"}},
    "/v1/score": {"answers": {"prompt": "The capital of France?", "completions": ["Paris.", "?"]}},
    "/v1/feedback": {
        "thumb": {"kind": "thumb", "completion_id": COMPLETION_ID, "value": "up"},
        "edited answer": {
            "kind": "demonstration",
            "completion_id": COMPLETION_ID,
            "text": "Paris.",
        },
        "comparison": {
            "id": "my-own-id-1",
            "kind": "comparison",
            "chosen": COMPLETION_ID,
            "rejected": [f"{COMPLETION_ID}.1"],
        },
    },
}

text_or_parts: Document = {
    "anyOf": [STRING, listed(of(type={"const": "text"}, text=STRING)), {"type": "null"}],
    "description": "Text, or text parts; null beside tool_calls.",
}
token_ids = listed({"type": "integer", "minimum": 0})
free_forms: Mapping[tuple[str, str], Document] = {
    ("Message", "content"): text_or_parts,
    ("CompletionRequest", "prompt"): {
        "anyOf": [STRING, listed(STRING), token_ids, listed(token_ids)],
        "description": "Text, several texts, token ids, or several of them.",
    },
    ("ChatRequest", "response_format"): nullable(
        of(type={"enum": ["text", "json_object", "json_schema"]})
    ),
    **{
        (name, "stop"): nullable({"anyOf": [STRING, {**listed(STRING), "maxItems": 16}]})
        for name in ("ChatRequest", "CompletionRequest")
    },
    ("FeedbackRequest", "value"): {
        "anyOf": [{"enum": ["up", "down"]}, {"type": "number"}, {"type": "null"}],
        "description": "`up` or `down` for a thumb, a number for a rating.",
    },
}
"""Fields that take more forms than the type they end as."""

stream_example = (
    'data: {"id":"chatcmpl-…","object":"chat.completion.chunk","policy_version":3,'
    '"choices":[{"index":0,"completion_id":"chatcmpl-…","delta":{"content":"Paris."},'
    '"logprobs":null,"finish_reason":null}]}\n\ndata: [DONE]\n\n'
)

response_headers: Mapping[str, Document] = {
    name: {"schema": STRING, "description": description}
    for name, description in (
        ("x-policy-version", "The policy version that answered."),
        ("idempotent-replayed", "`true` where an earlier request's answer is given again."),
        *(
            (name, "Of the key's limits, as OpenAI's; absent where it has none.")
            for name in exposed_headers
            if name.startswith("x-ratelimit-")
        ),
    )
}
