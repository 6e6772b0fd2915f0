"""Settings of the reward process, read from TUNELOOP_REWARD_*."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from tuneloop.bus.settings import BusSettings
from tuneloop.ports import GRPC_PORTS, METRICS_PORTS
from tuneloop.reward.scorers.judge import CONSTITUTION, JudgeSettings
from tuneloop.reward.scorers.judge_client import EndpointSettings
from tuneloop.rpc.settings import RpcServerSettings
from tuneloop.settings import AnyPort, Name, Port
from tuneloop.weights.settings import WeightsSettings


class RewardSettings(BusSettings, RpcServerSettings, WeightsSettings):
    """What to score with, and where to listen."""

    model_config = SettingsConfigDict(
        env_prefix="TUNELOOP_REWARD_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    port: AnyPort = Field(
        GRPC_PORTS["reward"], description="gRPC port, 0 to 65535; 0 takes a free one"
    )
    metrics_port: Port = Field(METRICS_PORTS["reward"], description="port of /metrics, 1 to 65535")
    policy: Name = Field(
        "tuneloop",
        description="policy whose reward model is used: letters, digits, '_' and '-'",
    )
    model: Path | None = Field(
        None,
        description="folder of a sequence classifier with one output, or of a backbone that gets "
        "a new head; unset: functions only",
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="torch device of the reward model: cpu or cuda"
    )
    functions: tuple[str, ...] = Field(
        (), description='Python functions: a JSON list like ["package.module:function"]'
    )
    function_timeout_seconds: float = Field(
        120.0,
        gt=0,
        description="most seconds a function may take for a batch, after which its rollouts are "
        "tried again later; above 0",
    )
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="share of each scorer in the reward, 1 where absent: a JSON object like "
        '{"reward_model": 0.5, "package.module:function": 2}',
    )
    normalize: bool = Field(
        False,
        description="whether scores are added up in standard deviations from each scorer's running "
        "mean, rather than raw: true or false",
    )
    judge_url: str = Field(
        "",
        description="URL of an OpenAI-compatible endpoint, with its /v1, whose model judges "
        "completions; empty: no judge",
    )
    judge_model: str = Field("", description="name of the judge's model at that endpoint")
    judge_api_key: SecretStr | None = Field(None, description="key of that endpoint")
    judge_constitution: Path | None = Field(
        None, description="text file the judge judges by; unset: the one that comes with tuneloop"
    )
    judge_votes: int = Field(3, ge=1, le=64, description="votes averaged, 1 to 64")
    judge_timeout_seconds: float = Field(
        60.0, gt=0, description="longest wait for a reply of the judge, in seconds"
    )
    max_length: int = Field(
        512,
        ge=8,
        description="longest prompt and completion in the reward model's tokens, 8 or more",
    )
    min_labels: int = Field(
        32, ge=0, description="labels after which a trained reward model counts, 0 or more"
    )
    min_accuracy: float = Field(
        0.65,
        ge=0,
        le=1,
        description="share of unseen pairs of liked and disliked answers that a trained reward "
        "model must rank right to count, 0 to 1",
    )
    batch_size: int = Field(32, ge=1, le=1024, description="rollouts scored together, 1 to 1024")
    batch_wait_seconds: float = Field(
        0.5, ge=0, le=10, description="wait for more rollouts after the first, 0 to 10 seconds"
    )
    threads: int = Field(1, ge=0, description="CPU threads to compute with; 0: all")
    drain_seconds: float = Field(
        3.0, ge=0, description="seconds that running calls get to end when the process stops"
    )

    def judge(self) -> JudgeSettings | None:
        """Return the judge's settings, if there is one. Raises `SettingsError`."""
        if not self.judge_url:
            return None
        key = self.judge_api_key
        return JudgeSettings(
            endpoint=EndpointSettings(
                url=self.judge_url,
                model=self.judge_model,
                api_key=key.get_secret_value() if key else "",
                timeout_seconds=self.judge_timeout_seconds,
            ),
            constitution=self.judge_constitution or CONSTITUTION,
            votes=self.judge_votes,
        )
