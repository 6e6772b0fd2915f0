"""Sizes of a decoder, which decide what it needs of a GPU's memory."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tuneloop.errors import InvalidRequest
from tuneloop.gpus.quantization import NAMED, Quantization, quantization_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a Llama-like decoder: grouped-query attention and a gated MLP."""

    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_size: int
    intermediate: int
    """Of the MLP; of one expert in a mixture of experts."""
    vocabulary: int
    tied: bool
    """Whether the output layer is the embedding."""
    experts: int = 1
    experts_per_token: int = 1
    head_norms: bool = False
    """Whether queries and keys are normalized, as in Qwen3 and Gemma 3."""
    quantization: Quantization | None = None
    """Of the linear layers of the blocks."""

    @property
    def queries(self) -> int:
        """The width of all queries."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """The width of all keys, and of all values."""
        return self.key_value_heads * self.head_size

    @property
    def embeddings(self) -> int:
        """Parameters of the embedding and the output layer."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def linear_parameters(self) -> int:
        """Parameters of the linear layers of all blocks."""
        attention = self.hidden * (2 * self.queries + 2 * self.keys)
        mlp = 3 * self.hidden * self.intermediate * self.experts
        return self.layers * (attention + mlp)

    @property
    def parameters(self) -> int:
        """All parameters, to within the router of a mixture of experts."""
        norms = 2 * self.hidden + (2 * self.head_size if self.head_norms else 0)
        return self.embeddings + self.linear_parameters + self.layers * norms + self.hidden

    def lora_parameters(self, rank: int) -> int:
        """Parameters of an adapter on every linear layer of the blocks (Hu et al. 2021)."""
        attention = 2 * (self.hidden + self.queries) + 2 * (self.hidden + self.keys)
        mlp = 3 * (self.hidden + self.intermediate) * self.experts
        return self.layers * rank * (attention + mlp)


qwen3 = partial(ModelShape, key_value_heads=8, head_size=128, vocabulary=151_936, head_norms=True)
shapes: Mapping[str, ModelShape] = {
    "smollm2-135m-instruct": ModelShape(
        layers=30,
        hidden=576,
        heads=9,
        key_value_heads=3,
        head_size=64,
        intermediate=1536,
        vocabulary=49_152,
        tied=True,
    ),
    "qwen3-0.6b": qwen3(layers=28, hidden=1024, heads=16, intermediate=3072, tied=True),
    "qwen3-4b": qwen3(layers=36, hidden=2560, heads=32, intermediate=9728, tied=True),
    "qwen3-8b": qwen3(layers=36, hidden=4096, heads=32, intermediate=12_288, tied=False),
    "qwen3-32b": qwen3(layers=64, hidden=5120, heads=64, intermediate=25_600, tied=False),
    "llama-3.3-70b": ModelShape(
        layers=80,
        hidden=8192,
        heads=64,
        key_value_heads=8,
        head_size=128,
        intermediate=28_672,
        vocabulary=128_256,
        tied=False,
    ),
}
"""Well-known ones, for a plan before anything is fetched."""


def find_shape(model: str) -> ModelShape:
    """Return the shape of a well-known model or of a folder's; raises `InvalidRequest`.

    A well-known name may end in what it is quantized with, as in `qwen3-8b-awq`.
    """
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return read_shape(folder)
    name = model.lower().rsplit("/", 1)[-1]
    if name in shapes:
        return shapes[name]
    for ending, document in NAMED.items():
        if name.endswith(ending) and name.removesuffix(ending) in shapes:
            plain = shapes[name.removesuffix(ending)]
            return replace(plain, quantization=quantization_of({"quantization_config": document}))
    known = ", ".join(shapes)
    problem = (
        f"model {model!r}: not a folder with a config.json, and not one of {known}, which may end "
        f"in {', '.join(NAMED)}"
    )
    raise InvalidRequest(problem, param="model")


def read_shape(folder: Path) -> ModelShape:
    """Read the shape of a model's folder. Raises `InvalidRequest` naming what its config lacks."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError("it is not a JSON object")
        shape = shape_of(SimpleNamespace(**(config.get("text_config") or config)))
        return replace(shape, quantization=quantization_of(config))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"it has no {error.name}" if isinstance(error, AttributeError) else error
        raise InvalidRequest(
            f"{path}: cannot be read as a decoder's: {problem}", param="model"
        ) from None


def shape_of(config: Any, *, default_intermediate: int | None = None) -> ModelShape:
    """Return the shape that a transformers config, or its JSON as attributes, describes.

    `default_intermediate` is for families that do not name theirs. Raises `AttributeError` for what
    is missing.
    """

    def optional(name: str) -> Any:
        return getattr(config, name, None)

    heads, hidden = int(config.num_attention_heads), int(config.hidden_size)
    intermediate = optional("intermediate_size") or default_intermediate
    experts = int(optional("num_experts") or optional("num_local_experts") or 1)
    if experts > 1:
        intermediate = optional("moe_intermediate_size") or intermediate
    return ModelShape(
        layers=int(config.num_hidden_layers),
        hidden=hidden,
        heads=heads,
        key_value_heads=int(optional("num_key_value_heads") or heads),
        head_size=int(optional("head_dim") or hidden // heads),
        intermediate=int(intermediate or config.intermediate_size),
        vocabulary=int(config.vocab_size),
        tied=bool(optional("tie_word_embeddings")),
        experts=experts,
        experts_per_token=int(optional("num_experts_per_tok") or 1),
        head_norms=str(optional("model_type")).startswith(("qwen3", "gemma3")),
    )
