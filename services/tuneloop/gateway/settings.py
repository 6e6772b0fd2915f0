"""Settings of the gateway: `TUNELOOP_GATEWAY_*`, and `TUNELOOP_API_KEY`."""

import re
from pathlib import Path
from typing import Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import SettingsConfigDict

from tuneloop.bus.settings import BusSettings
from tuneloop.errors import CorruptData
from tuneloop.feedback import FeedbackKind
from tuneloop.gateway.keys.scopes import Scope
from tuneloop.gateway.keys.store import ApiKey, KeyFile, create_command
from tuneloop.ports import is_loopback, local_address
from tuneloop.rpc.settings import RpcSettings
from tuneloop.settings import AnyPort, Name

MIN_SECRET_BYTES = 16

Names = tuple[str, ...]


class Price(BaseModel):
    """The price of a policy per million tokens, in any currency."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    input: float = Field(ge=0)
    """Of prompts."""
    output: float = Field(ge=0)
    """Of completions."""

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Return what so many tokens cost."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


class GatewaySettings(BusSettings, RpcSettings):
    """What the HTTP edge needs to know. It keeps no state of its own."""

    calls_grpc = True

    model_config = SettingsConfigDict(
        env_prefix="TUNELOOP_GATEWAY_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        populate_by_name=True,
    )

    host: str = Field(
        "127.0.0.1", description="address to listen on; others than loopback need a key"
    )
    port: AnyPort = Field(8000, description="TCP port, 0 to 65535; 0 takes a free one")
    metrics_port: AnyPort | None = Field(
        None,
        description="port of /metrics, apart from that of the API, so that a proxy in front of the "
        "API does not show it; unset: the API's port",
    )
    generation_address: str = Field(
        local_address("generation"), description="host:port of generation's gRPC"
    )
    canary_address: str = Field(
        "",
        description="host:port of the generation replica that serves canaries of full weights; "
        "empty: canaries are adapters, which every replica serves",
    )
    reward_address: str = Field(local_address("reward"), description="host:port of reward's gRPC")
    learner_address: str = Field(
        local_address("learner"), description="host:port of the learner's gRPC"
    )
    policy: Name = Field("tuneloop", description="policy served: letters, digits, _ -")
    tenant: Name = Field("default", description="tenant of every request")
    secret: SecretStr | None = Field(
        None, description=f"signs completion ids; {MIN_SECRET_BYTES} characters or more"
    )
    secret_file: Path | None = Field(
        None, description="file that holds the secret, instead of the secret itself"
    )
    api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("TUNELOOP_GATEWAY_API_KEY", "TUNELOOP_API_KEY", "api_key"),
        description="one key for everything, sent as 'Authorization: Bearer …'; "
        "see keys_file for more of them",
    )
    keys_file: Path | None = Field(
        None,
        description="file of the keys that `tuneloop keys` makes; unset: none. "
        "`tuneloop up` sets it to keys/api_keys.json in its data folder",
    )
    audit_file: Path | None = Field(
        None,
        description="file of the audit log, JSON lines; unset: the process's log. "
        "`tuneloop up` sets it to logs/audit.jsonl in its data folder",
    )
    require_key: bool | None = Field(
        None,
        description="whether /v1 needs a key; unset: as soon as one was made. "
        "false works on loopback only",
    )
    public_feedback: bool = Field(
        False,
        description="let pages of cors_origins give feedback without a key, "
        "for completions whose ids they hold",
    )
    public_feedback_kinds: tuple[FeedbackKind, ...] = Field(
        (FeedbackKind.THUMB,),
        description="kinds of feedback that are accepted without a key, a JSON list: text that "
        "anybody may write is best left out",
    )
    public_feedback_per_minute: int = Field(
        30, ge=1, description="feedback without a key that one address may give in a minute"
    )
    signals: Literal["on", "off"] = Field(
        "on", description="whether front ends may send signals: what users do with answers"
    )
    default_max_tokens: int = Field(
        256, ge=1, le=1_000_000, description="tokens per completion where the caller names no limit"
    )
    default_temperature: float = Field(
        0.5, ge=0, le=2, description="temperature where the caller names none, 0 to 2"
    )
    prices: dict[Name, Price] = Field(
        default_factory=dict,
        description="prices per million tokens by policy, in any currency, a JSON mapping like "
        '{"tuneloop": {"input": 0.5, "output": 1.5}}; unset: costs are not counted',
    )
    side_task_prompts: Names = Field(
        (
            r"### Task:\s+Generate a concise(, 3-5 word)? title",
            r"### Task:\s+Generate 1-3 broad tags",
            r"### Task:\s+(Suggest 3-5 relevant follow-up questions|Predict 3-5 useful messages)",
            r"### Task:\s+Generate a detailed prompt for am image",
            r"### Task:\s+You are an autocompletion system",
            r"### Task:\s+Analyze the chat history to determine the necessity",
            "Provide a concise, 5-word-or-less title for the conversation",
        ),
        description="how the last turn of a request for a title, for tags and the like begins (a "
        "JSON list of regular expressions); these, and requests with metadata.task, are side tasks",
    )
    learn_from_side_tasks: bool = Field(
        False, description="whether answers to side tasks are learned from like any other"
    )
    open_webui: Names = Field(
        (),
        description="names of the keys of Open WebUI, whose headers name users, chats and messages "
        "and whose ratings are feedback; a JSON list, `local` without a key: docs/open-webui.md",
    )
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="addresses of the proxies whose X-Forwarded-For is believed, a JSON list like "
        '["10.0.0.0/8"]; unset: a caller\'s address is where the connection comes from',
    )
    cors_origins: Names = Field(
        (), description='other sites whose pages may call: a JSON list like ["https://app.example"]'
    )
    trusted_hosts: Names = Field(
        (),
        description='further names of this machine, where no key is set: a JSON list like ["box"]',
    )
    max_body_bytes: int = Field(
        4 * 1024 * 1024, ge=1024, description="largest request body in bytes, 1024 or more"
    )
    request_timeout_seconds: float = Field(
        600.0, gt=0, description="longest a completion may take, in seconds"
    )
    heartbeat_seconds: float = Field(
        15.0, gt=0, description="silence on a stream after which a comment is sent, in seconds"
    )
    idempotency_seconds: float = Field(
        600.0,
        ge=0,
        description="how long an answer is kept for a repeat with its Idempotency-Key, in seconds",
    )
    retry_seconds: float = Field(
        30.0,
        ge=0,
        description="how long an answer is kept for retries of OpenAI's clients, in seconds; "
        "0: never",
    )
    idempotency_max_bytes: int = Field(
        64 * 1024 * 1024, ge=0, description="bytes of answers kept for repeats and retries"
    )
    drain_seconds: float = Field(
        10.0, ge=0, description="how long answers may go on after a stop was asked for, in seconds"
    )

    @field_validator("side_task_prompts")
    @classmethod
    def expressions(cls, patterns: Names) -> Names:
        """Refuse what is no regular expression."""
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return patterns

    @model_validator(mode="after")
    def priced(self) -> "GatewaySettings":
        """Refuse prices that leave out the policy."""
        if self.prices and self.policy not in self.prices:
            named = ", ".join(map(repr, self.prices))
            raise ValueError(
                f"prices: there is none of the policy {self.policy!r}, only of {named}"
            )
        return self

    @model_validator(mode="after")
    def keyed_beyond_loopback(self) -> "GatewaySettings":
        """Refuse to serve a network without a key, and to sign without a secret."""
        if not is_loopback(self.host):
            if self.require_key is False:
                raise ValueError(f"require_key: must not be false where host is {self.host}")
            if self.api_key is None and not self.keys_in_file():
                raise ValueError(keys_wanted(self.host, self.keys_file))
        if (self.secret is None) == (self.secret_file is None):
            raise ValueError(
                "set one of TUNELOOP_GATEWAY_SECRET and TUNELOOP_GATEWAY_SECRET_FILE: "
                "it signs completion ids"
            )
        if len(self.secret_bytes()) < MIN_SECRET_BYTES:
            raise ValueError(f"the secret must have {MIN_SECRET_BYTES} bytes or more")
        return self

    def secret_bytes(self) -> bytes:
        """The signing secret, wherever it is kept."""
        if self.secret is not None:
            return self.secret.get_secret_value().encode()
        assert self.secret_file is not None
        try:
            return self.secret_file.read_bytes().strip()
        except OSError as error:
            raise ValueError(f"secret_file {self.secret_file}: {error.strerror}") from error

    def keys_in_file(self) -> list[ApiKey]:
        """The keys of the file that are active."""
        if self.keys_file is None:
            return []
        try:
            return [key for key in KeyFile(self.keys_file).read() if key.is_active]
        except CorruptData as error:
            raise ValueError(error.message) from error

    @property
    def key(self) -> str | None:
        """The key of the environment."""
        return None if self.api_key is None else self.api_key.get_secret_value()


def keys_wanted(host: str, keys_file: Path | None) -> str:
    """What to do where others can reach the gateway and there is no key."""
    name_it = "" if keys_file else "and name its file in TUNELOOP_GATEWAY_KEYS_FILE, "
    return (
        f"host is {host}, which others can reach, and there is no key. Make one with\n"
        f"  {create_command('admin', Scope.ADMIN, keys_file)}\n"
        f"{name_it}or set TUNELOOP_API_KEY, or listen on 127.0.0.1"
    )
