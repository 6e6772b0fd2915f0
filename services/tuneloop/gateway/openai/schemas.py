"""Request bodies of the OpenAI endpoints.

Unsupported fields that would change the answer are refused by name; unknown fields are ignored, as
clients keep adding new ones.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    field_validator,
    model_validator,
)

from tuneloop.errors import InvalidRequest
from tuneloop.gateway.errors import invalid_request
from tuneloop.gateway.openai.reasoning import ReasoningEffort, TemplateOptions
from tuneloop.gateway.openai.response_format import ResponseFormat
from tuneloop.gateway.openai.sessions import SessionId
from tuneloop.gateway.openai.tools import FunctionTool, ToolChoice, check_tool_choice
from tuneloop.rollouts import MAX_BIASES, MAX_STOP_CHARACTERS, check_tags
from tuneloop.text.messages import Message, Text
from tuneloop.text.unicode import unicode

Prompt = str | tuple[int, ...]

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
MAX_TOP_LOGPROBS = 20
MAX_PROMPTS = 64
MAX_TOOLS = 128
MAX_STOPS = 16
MAX_MESSAGES = 2048
MAX_CANDIDATES = 8
BEST_OF = "metadata.best_of"

NO_TAGS = frozenset({"train", "task", "session_id", "best_of"})
"""Names in `metadata` that ask for something."""

unsupported: Mapping[str, tuple[object, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"], []),
    "audio": (),
    "web_search_options": (),
    "moderation": (),
    "verbosity": ("medium",),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
}
"""Unsupported fields, with the values that request nothing."""


def as_strings(value: object) -> object:
    """Return a string or a list of strings as a tuple."""
    values = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) and v for v in values):
        raise ValueError("must be a non-empty string or a list of them")
    if len(values) > MAX_STOPS:
        raise ValueError(f"must have at most {MAX_STOPS} items, not {len(values)}")
    if any(len(value) > MAX_STOP_CHARACTERS for value in values):
        raise ValueError(f"each must have at most {MAX_STOP_CHARACTERS} characters")
    return tuple(values)


def as_prompts(prompt: object) -> tuple[Prompt, ...]:
    """Return the four forms of `prompt` (text, texts, token ids, lists of them) as a tuple."""
    if isinstance(prompt, str):
        return (unicode(prompt),)
    if not isinstance(prompt, list) or not prompt:
        raise ValueError("must be text, a list of texts, token ids, or a list of token ids")
    if all(is_token_id(item) for item in prompt):
        return (tuple(prompt),)
    if len(prompt) > MAX_PROMPTS:
        raise ValueError(f"at most {MAX_PROMPTS} prompts in a request")
    if all(isinstance(item, str) for item in prompt):
        return tuple(map(unicode, prompt))
    if all(isinstance(item, list) and item and all(map(is_token_id, item)) for item in prompt):
        return tuple(tuple(item) for item in prompt)
    raise ValueError("must be text, a list of texts, token ids, or a list of token ids")


def is_token_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= INT32_MAX


StopText = Annotated[str, Field(max_length=MAX_STOP_CHARACTERS)]


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool | None = None


class SamplingRequest(BaseModel):
    """The fields of both chat and plain completions."""

    model_config = ConfigDict(
        extra="ignore",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    model: Text
    max_tokens: int | None = Field(None, ge=1, le=INT32_MAX)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    """0 leaves the likeliest token alone, as temperature 0 does."""
    top_k: int | None = Field(None, ge=-1, le=INT32_MAX)
    """Not OpenAI's; -1 and 0 keep all tokens."""
    n: int | None = Field(None, ge=1, le=64)
    stop: Annotated[
        tuple[Text, ...],
        BeforeValidator(
            as_strings,
            json_schema_input_type=StopText
            | Annotated[list[StopText], Field(max_length=MAX_STOPS)]
            | None,
        ),
    ] = ()
    seed: int | None = Field(None, ge=-INT64_MAX - 1, le=INT64_MAX)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=MAX_BIASES
    )
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = Field(None, max_length=512)
    safety_identifier: Text | None = Field(None, max_length=512)
    """OpenAI's newer name of `user`, which wins over it."""
    metadata: dict[str, Any] | None = None
    """`{"train": false}` keeps the completion out of learning; `{"task": …}` names a side task;
    `{"session_id": …}` names the session where clients send no fields of their own;
    `{"best_of": "4"}` samples so many candidates (2 to 8) of a chat's answer and answers the best
    by its reward. All else are tags, kept with the completion: up to 16, names of 64 and values of
    512 characters."""
    session_id: SessionId | None = None
    """Not OpenAI's: the conversation that this is a turn of, by your own id of it. Feedback may
    name it in the place of a completion. Wins over `metadata.session_id` and the header
    `x-session-id`."""
    policy_version: int | None = Field(None, ge=0, le=INT64_MAX)
    """Not OpenAI's: answer with this version; it must be loaded."""

    @field_validator("logit_bias")
    @classmethod
    def check_token_ids(cls, bias: dict[int, float] | None) -> dict[int, float] | None:
        """Refuse keys that are not token ids (32-bit)."""
        if bias and not all(map(is_token_id, bias)):
            raise ValueError("keys must be token ids")
        return bias

    @field_validator("metadata")
    @classmethod
    def check_metadata(cls, metadata: dict[str, Any] | None) -> dict[str, Any] | None:
        """Refuse a value of `train` other than true and false, and what is no tag."""
        if metadata and metadata.get("train") not in (None, True, False, "true", "false"):
            raise ValueError("train must be true or false")
        tags_in(metadata or {})
        return metadata

    @property
    def train(self) -> bool | None:
        """Whether the completion may be learned from; None if the caller does not say."""
        train = (self.metadata or {}).get("train")
        return None if train is None else train in (True, "true")

    @property
    def tags(self) -> Mapping[str, str]:
        """What the caller notes about the request, by name."""
        return tags_in(self.metadata or {})

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def tags_in(metadata: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the tags in `metadata`: what asks for nothing. Raises `ValueError`.

    Numbers, true and false stand as JSON has them; null is no tag.
    """
    tags = {}
    for name, value in metadata.items():
        if name in NO_TAGS or value is None:
            continue
        if not isinstance(value, str | int | float):
            raise ValueError(f"{name[:80]}: must be text, a number, true or false")
        tags[unicode(name)] = unicode(value if isinstance(value, str) else json.dumps(value))
    return check_tags(tags)


def refuse_fields(nothing: Mapping[str, tuple[object, ...]], *names: str) -> Any:
    """Return a validator that refuses these fields; without names all of `nothing`.

    `nothing` has the values of each that request nothing, which are taken.
    """

    def refuse(cls: type[BaseModel], value: object, info: Any) -> object:
        if value is None or value in nothing[info.field_name]:
            return value
        raise ValueError("is not supported")

    return field_validator(*(names or nothing))(classmethod(refuse))


class ChatRequest(SamplingRequest):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: int | None = Field(None, ge=1, le=INT32_MAX)
    """Wins over `max_tokens`."""
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[FunctionTool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Annotated[
        Any, BeforeValidator(check_tool_choice, json_schema_input_type=ToolChoice | None)
    ] = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    enable_thinking: bool | None = None
    """Not OpenAI's: whether the model thinks before it answers."""
    chat_template_kwargs: TemplateOptions | None = None
    """Not OpenAI's: arguments for the model's chat template."""
    thinking_token_budget: int | None = Field(None, ge=0, le=INT32_MAX)
    """Not OpenAI's: the most tokens of the thought."""
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    web_search_options: Any = None
    moderation: Any = None
    verbosity: Any = None

    refuse = refuse_fields(
        unsupported,
        "functions",
        "function_call",
        "modalities",
        "audio",
        "web_search_options",
        "moderation",
        "verbosity",
    )

    @field_validator("tool_choice")
    @classmethod
    def check_has_tools(cls, value: object, info: Any) -> object:
        """Refuse a choice that forces a call without tools."""
        if value not in (None, "none", "auto") and "tools" in info.data and not info.data["tools"]:
            raise ValueError("needs tools")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def check_top_logprobs(cls, value: int | None, info: Any) -> int | None:
        """Refuse `top_logprobs` without `logprobs`, as OpenAI does."""
        if value is not None and not info.data.get("logprobs"):
            raise ValueError("needs logprobs to be true")
        return value


class CompletionRequest(SamplingRequest):
    """`POST /v1/completions`."""

    prompt: Annotated[
        tuple[Prompt, ...],
        BeforeValidator(
            as_prompts,
            json_schema_input_type=str
            | list[str]
            | list[NonNegativeInt]
            | list[list[NonNegativeInt]],
        ),
    ]
    """Text, several texts, token ids, or several lists of them."""
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    suffix: Any = None
    echo: Any = None
    best_of: Any = None

    refuse = refuse_fields(unsupported, "suffix", "echo", "best_of")


class ScoreRequest(BaseModel):
    """`POST /v1/score`: completions of one prompt."""

    model_config = ConfigDict(
        extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    model: Text | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=MAX_MESSAGES)
    prompt: Text | None = None
    completions: Annotated[list[Text], Field(min_length=1, max_length=256)]

    @model_validator(mode="after")
    def check_one_prompt(self) -> Self:
        """Refuse a body with both a conversation and a text, or neither."""
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("give either messages or prompt")
        return self


def candidates_of(body: SamplingRequest) -> int:
    """Return how many candidates to choose the answer from; 1 without `metadata.best_of`.

    Raises `InvalidRequest` for no such number, and for several choices.
    """
    value = (body.metadata or {}).get("best_of")
    if value is None:
        return 1
    # OpenAI's metadata has texts alone.
    numbers = {str(number): number for number in range(1, MAX_CANDIDATES + 1)}
    number = numbers.get(value) if isinstance(value, str) else value
    if type(number) is not int or not 1 <= number <= MAX_CANDIDATES:
        problem = f"must be 1 to {MAX_CANDIDATES}, got {str(value)[:40]!r}"
        raise InvalidRequest(f"{BEST_OF}: {problem}", param=BEST_OF)
    if number > 1 and (body.n or 1) > 1:
        raise InvalidRequest(f"{BEST_OF}: one is answered: leave out n", param=BEST_OF)
    return number


def read_chat(fields: Mapping[str, Any]) -> ChatRequest:
    """Return the chat of these fields, which another API's request stands for.

    Raises `InvalidRequest`.
    """
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False)) from None
