"""Rollouts: a prompt, its completion, the versions that sampled it, and their log-probs.

Domain types only: frozen, slotted, standard library only. The wire form is in `tuneloop.wire`.
"""

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


class FinishReason(enum.StrEnum):
    """Why a completion ended; the values are OpenAI's, plus `abort`."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


class RolloutSource(enum.StrEnum):
    """Why a completion was sampled."""

    USER = "user"
    """A user's request."""
    PROMPTS = "prompts"
    """A request of the learner, to learn from the answer."""
    EVAL = "eval"
    """A request of the learner, to evaluate a version; never learned from."""
    IMPORT = "import"
    """Not sampled: text of an imported file."""
    CANDIDATE = "candidate"
    """A user's request for the best of several, which another was: nobody has read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the model asks the caller to make."""

    call_id: str
    name: str
    arguments: str
    """A JSON object, as the model wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    """`system`, `user`, `assistant` or `tool`."""
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """The calls that the assistant asks for in this turn."""
    tool_call_id: str = ""
    """The call that a turn of role `tool` answers."""
    reasoning: str = ""
    """What the assistant thought before this turn; most chat templates leave it out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may ask the caller to call."""

    name: str
    description: str = ""
    parameters: str = ""
    """JSON schema of the arguments; empty: none."""
    strict: bool = False
    """Whether the arguments must always match the schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """The tools that the model may call, and whether it must."""

    tools: tuple[Tool, ...]
    required: bool = False
    """Whether the model must call one of them."""
    name: str = ""
    """The one that the model must call; empty: any."""
    single: bool = False
    """At most one call."""

    @property
    def forced(self) -> bool:
        """Whether the answer must be a call."""
        return self.required or bool(self.name)


MAX_STOP_CHARACTERS = 64
"""Of one stop string."""
MAX_BIASES = 300
"""Tokens in `logit_bias`, as at OpenAI."""
SESSION_ID = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,128}")
"""What an application may call a session: no control characters."""
MAX_TAGS = 16
"""Of a request, as OpenAI's metadata; the bounds of names and values are in characters."""
MAX_TAG_NAME = 64
MAX_TAG_VALUE = 512
MIN_TEMPERATURE = 0.01
"""A smaller one above 0 is raised to this: so does vLLM, whose log-probs must fit what is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """How to sample; the defaults suit a small chat model."""

    temperature: float = 0.7
    """Softmax temperature; 0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all tokens."""
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    n: int = 1
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int | None = None
    """Alternatives to report for each token; None reports no log-probs to the caller."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    json_schema: str = ""
    """JSON schema that the completion must match; empty: none."""
    structural_tag: str = ""
    """Structural tag (xgrammar's JSON) that the completion must match; empty: none."""

    @property
    def constrained(self) -> bool:
        """Whether a grammar masks tokens; log-probs are those after the mask."""
        return bool(self.json_schema or self.structural_tag)

    @property
    def grammar_field(self) -> str:
        """The field of a request that the grammar comes from."""
        return "response_format" if self.json_schema else "tools"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyVersionSpan:
    """Tokens `start` (inclusive) to `end` (exclusive) were sampled by `policy_version`."""

    policy_version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt: a conversation, plain text, or token ids. Exactly one is set."""

    messages: tuple[ChatMessage, ...] = ()
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    tool_use: ToolUse | None = None
    """The tools that the model may call; only with a conversation."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for the chat template, JSON values by name; only with a conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A prompt, its completion, the sampler's log-probs and the versions that sampled it."""

    completion_id: str
    group_id: str
    """Shared by the completions sampled for one request."""
    policy: str
    tenant: str
    user_hash: str
    messages: tuple[ChatMessage, ...]
    """Empty when the prompt was plain text or token ids."""
    prompt_text: str
    completion_text: str
    """The answer, without the thought before it."""
    prompt_token_ids: tuple[int, ...]
    completion_token_ids: tuple[int, ...]
    generation_logprobs: tuple[float, ...]
    """Natural log-prob of each completion token, as sampled (after temperature and top-p)."""
    finish_reason: FinishReason
    policy_version_spans: tuple[PolicyVersionSpan, ...]
    sampling: SamplingParameters
    finished_time: datetime
    source: RolloutSource = RolloutSource.USER
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the prompts file, JSON values by name; for reward functions."""
    session_id: str = ""
    """The conversation it is a turn of, by the application's own id; empty: none."""
    reasoning_text: str = ""
    """What the model thought before it answered, without delimiters; empty: nothing."""
    reasoning_tokens: int = 0
    """How many of the first completion tokens are the thought, its delimiters included; all of them
    where it was cut off before the answer."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """What the application noted about the request, by name."""
    traceparent: str = field(default="", compare=False)
    """The trace it belongs to; empty without tracing."""

    @property
    def oldest_policy_version(self) -> int:
        """The oldest version that sampled a token: staleness is measured from it."""
        return min(span.policy_version for span in self.policy_version_spans)

    @property
    def policy_version(self) -> int:
        """The version that sampled the last token, which the caller sees."""
        return self.policy_version_spans[-1].policy_version


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerResult:
    """One scorer's result for one completion."""

    scorer: str
    score: float | None
    """None if the scorer could not score it, rather than 0."""
    weight: float
    informative: bool
    """False until a reward model was trained on enough labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The reward of one completion: the weighted sum of its scorers, and the parts."""

    reward: float | None
    results: tuple[ScorerResult, ...]

    @property
    def informative(self) -> bool:
        """Whether any scorer with a score is informative."""
        return any(r.informative and r.score is not None for r in self.results)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """The score of a completion, as published by the reward service."""

    completion_id: str
    policy: str
    score: Score
    reward_model_version: int
    scored_time: datetime
    traceparent: str = field(default="", compare=False)
    """The trace it belongs to; empty without tracing."""


def check_tags(tags: Mapping[str, str]) -> Mapping[str, str]:
    """Return `tags`; raises `ValueError` for too many, and for one that is too long."""
    if len(tags) > MAX_TAGS:
        raise ValueError(f"{len(tags)} tags; at most {MAX_TAGS}")
    for name, value in tags.items():
        if not 0 < len(name) <= MAX_TAG_NAME:
            raise ValueError(f"a name must have 1 to {MAX_TAG_NAME} characters, got {name[:80]!r}")
        if len(value) > MAX_TAG_VALUE:
            raise ValueError(f"{name}: has {len(value)} characters; at most {MAX_TAG_VALUE}")
    return tags


def read_tag(text: str) -> tuple[str, str]:
    """Return name and value of `name=value`. Raises `ValueError`."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"must be name=value, got {text[:80]!r}")
    check_tags({name: value})
    return name, value


def choice_id(completion_id: str, index: int) -> str:
    """Return the id of choice `index` of a request: the request's own for the first one."""
    return completion_id if index == 0 else f"{completion_id}.{index}"


def merge_spans(versions: Sequence[int]) -> tuple[PolicyVersionSpan, ...]:
    """Run-length encode the version of each token; an empty completion has no span."""
    spans: list[PolicyVersionSpan] = []
    for position, version in enumerate(versions):
        continues = bool(spans) and spans[-1].policy_version == version
        start = spans.pop().start if continues else position
        spans.append(PolicyVersionSpan(policy_version=version, start=start, end=position + 1))
    return tuple(spans)


def prompt_as_text(messages: Sequence[ChatMessage], prompt_text: str = "") -> str:
    """Return a conversation as plain text, or `prompt_text` without one.

    A single question is returned as it is; in a longer conversation each turn starts with its role.
    No chat template is used: reward models must not depend on the policy's.
    """
    if not messages:
        return prompt_text
    if len(messages) == 1:
        return messages[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in messages)
