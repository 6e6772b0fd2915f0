"""Settings of `tuneloop up`, read from TUNELOOP_SUPERVISOR_*; its options come first."""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from tuneloop.models.catalog import default_policy_model, default_reward_backbone
from tuneloop.policies import WeightsKind
from tuneloop.settings import Name, Port


class SupervisorSettings(BaseSettings):
    """What to run on this machine, and where to keep its data."""

    model_config = SettingsConfigDict(
        env_prefix="TUNELOOP_SUPERVISOR_", extra="forbid", frozen=True, populate_by_name=True
    )

    model: str = Field(
        default_policy_model, description="model to serve: a catalog name, a folder or a hub id"
    )
    reward_model: str = Field(
        default_reward_backbone,
        description="backbone of the reward model: a catalog name, a folder or a hub id",
    )
    data_dir: Path = Field(Path(".tuneloop"), description="folder of all data")
    host: str = Field("127.0.0.1", description="address of the page and the API")
    port: Port = Field(8000, description="port of the page and the API, 1 to 65535")
    engine: Literal["auto", "vllm", "transformers"] = Field(
        "auto", description="auto (vllm where it is installed), vllm or transformers"
    )
    weights: WeightsKind = Field(
        WeightsKind.LORA, description="what learning changes: lora or full"
    )
    policy: Name = Field("tuneloop", description="name of the policy: letters, digits, '_' and '-'")
    nats_server: Path | None = Field(
        None,
        validation_alias=AliasChoices(
            "TUNELOOP_SUPERVISOR_NATS_SERVER", "TUNELOOP_NATS_SERVER_BINARY", "nats_server"
        ),
        description="nats-server binary; unset: the one installed beside Python",
    )
    cache_dir: Path = Field(
        Path("~/.cache/tuneloop"),
        validation_alias=AliasChoices(
            "TUNELOOP_SUPERVISOR_CACHE_DIR", "TUNELOOP_CACHE_DIR", "cache_dir"
        ),
        description="where models of the catalog are kept",
    )
    stop_seconds: float = Field(
        15.0, gt=0, description="seconds each process gets to stop before it is killed"
    )
