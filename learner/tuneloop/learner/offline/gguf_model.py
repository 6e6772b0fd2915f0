"""A model folder as one GGUF file, for llama.cpp and what is built on it (Ollama, LM Studio).

The official `gguf` package writes the file, knows llama.cpp's name of each tensor and quantizes.
What it does not know is what llama.cpp expects of an architecture; so an architecture is refused
unless it is one of `ARCHITECTURES`, each of which is tested with llama.cpp itself.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tuneloop.errors import WeightsRefused
from tuneloop.learner.offline.gguf_tokenizer import write_tokenizer

GgufType = Literal["f32", "f16", "bf16", "q8_0"]
"""What matrices are stored in; vectors are always float32."""
Q8_0_BLOCK = 32
EXPERT = re.compile(r"\.experts\.\d+\.")
"""In the name of a tensor: llama.cpp has all experts of a layer in one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How llama.cpp computes a family of models."""

    name: str
    """In the file, and in the `gguf` package."""
    rotates_neighbours: bool = False
    """Rotary positions turn elements 2i and 2i+1 of a head, not i and i + half: the rows of queries
    and keys change their order."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(name="llama", rotates_neighbours=True),
    "mistral": Architecture(name="llama", rotates_neighbours=True),
    "qwen2": Architecture(name="qwen2"),
    "qwen3": Architecture(name="qwen3"),
    "qwen3_moe": Architecture(name="qwen3moe"),
}
"""By `model_type`; SmolLM2 is a Llama."""


def write_gguf(
    folder: Path, path: Path, *, kind: GgufType, about: Mapping[str, Any] | None = None
) -> None:
    """Write the model of a `save_pretrained` folder, whose weights are not quantized, to `path`.

    `about` has what the file says of its origin, each by the name of a method of `GGUFWriter`
    without `add_`. One tensor at a time is in memory. Raises `WeightsRefused` for an architecture,
    a setting of it, a tensor or a tokenizer that cannot be converted.
    """
    import gguf
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    architecture = find_architecture(config, folder)
    tensors = Tensors(folder, config, architecture, kind)
    writer = gguf.GGUFWriter(None, architecture.name)
    writer.add_type(gguf.GGUFType.MODEL)
    for name, value in (about or {}).items():
        getattr(writer, f"add_{name}")(value)
    prefix = "ALL" if kind == "f32" else "MOSTLY"
    writer.add_file_type(gguf.LlamaFileType[f"{prefix}_{kind.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_shape(writer, config)
    write_tokenizer(writer, folder, config.vocab_size)
    factors = rope_factors(config)
    if factors is not None:
        tensors.add_vector("rope_freqs.weight", factors)
    tensors.announce(writer)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in tensors:
            writer.write_tensor_data(values)
    finally:
        writer.close()


def find_architecture(config: Any, folder: Path) -> Architecture:
    """Return what llama.cpp makes of a model; raises `WeightsRefused` for one not handled here."""
    problem = None
    rope = rope_of(config)
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        problem = f"model_type {config.model_type!r} is not one that is converted here ({known})"
    elif config.hidden_act != "silu":
        problem = f"hidden_act {config.hidden_act!r} is not silu"
    elif rope.get("partial_rotary_factor", 1.0) != 1.0:
        problem = "partial_rotary_factor is not 1"
    elif rope.get("rope_type", "default") not in ("default", "linear", "yarn", "llama3"):
        problem = f"rope_type {rope['rope_type']!r} is not converted here"
    elif not getattr(config, "norm_topk_prob", True):
        problem = "norm_topk_prob is false"
    elif getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
        problem = "some of its layers have no experts"
    if problem is not None:
        raise WeightsRefused(
            f"{folder}: {problem}; export it with --format merged and convert that with "
            "llama.cpp's convert_hf_to_gguf.py",
            param="format",
        )
    return ARCHITECTURES[config.model_type]


def rope_of(config: Any) -> dict[str, Any]:
    """Return the settings of rotary positions."""
    return dict(getattr(config, "rope_parameters", None) or {})


def head_size_of(config: Any) -> int:
    """Return the size of one head of attention."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def write_shape(writer: Any, config: Any) -> None:
    """Add the hyperparameters.

    llama.cpp attends to the whole context in these architectures. A model that does so within a
    window gets a context as long as that: there it is the same.
    """
    import gguf

    window = getattr(config, "sliding_window", None)
    longest = config.max_position_embeddings
    writer.add_context_length(longest if window is None else min(longest, window))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size_of(config))
    writer.add_value_length(head_size_of(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if getattr(config, "num_experts", None):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    rope = rope_of(config)
    writer.add_rope_dimension_count(head_size_of(config))
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10_000.0)))
    if rope.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if rope.get("rope_type") == "yarn":
        original = rope.get("original_max_position_embeddings") or longest
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32.0))
        writer.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1.0))
        if rope.get("attention_factor") is not None:
            writer.add_rope_scaling_yarn_attn_factor(float(rope["attention_factor"]))


def rope_factors(config: Any) -> Any:
    """Return what Llama 3 divides each frequency by, float32 (head size / 2,); None without."""
    if rope_of(config).get("rope_type") != "llama3":
        return None
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device=torch.device("cpu"))
    exponents = torch.arange(0, 2 * len(scaled), 2).float() / (2 * len(scaled))
    plain = 1.0 / rope_of(config)["rope_theta"] ** exponents
    return (plain / scaled).numpy()


class Tensors:
    """The tensors of a folder by llama.cpp's names, read and converted one after another."""

    def __init__(
        self, folder: Path, config: Any, architecture: Architecture, kind: GgufType
    ) -> None:
        """Find every tensor; raises `WeightsRefused` naming one that llama.cpp has no place for."""
        import gguf
        from safetensors import safe_open

        self._config = config
        self._architecture = architecture
        self._kind = gguf.GGMLQuantizationType[kind.upper()]
        self._vectors: dict[str, Any] = {}
        self._places: dict[str, dict[str, Path]] = {}
        arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture.name]
        names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                found = list(tensors.keys())
            for name in found:
                if name == "lm_head.weight" and config.tie_word_embeddings:
                    continue
                joined = EXPERT.sub(".experts.", name)
                ours = names.get_name(joined, try_suffixes=(".weight", ".bias"))
                if ours is None:
                    raise WeightsRefused(
                        f"{folder}: {architecture.name} has no place for tensor {name} in "
                        "llama.cpp; export it with --format merged",
                        param="format",
                    )
                self._places.setdefault(ours, {})[name] = file

    def add_vector(self, name: str, values: Any) -> None:
        """Add a float32 vector that the folder does not have."""
        self._vectors[name] = values

    def announce(self, writer: Any) -> None:
        """Tell the writer the shape and type of every tensor, in the order they come in."""
        import gguf
        import numpy as np
        from safetensors import safe_open

        for name, values in self._vectors.items():
            writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
        for ours, parts in self._places.items():
            name, file = next(iter(parts.items()))
            with safe_open(file, framework="pt") as tensors:
                shape = tuple(tensors.get_slice(name).get_shape())
            if EXPERT.search(name):
                shape = (len(parts), *shape)
            kind = self._kind_of(ours, shape)
            stored = gguf.quant_shape_to_byte_shape(shape, kind)
            writer.add_tensor_info(ours, stored, np.uint8, math.prod(stored), raw_dtype=kind)

    def __iter__(self) -> Iterator[Any]:
        """Return the values of each, as they are stored."""
        import gguf
        import numpy as np

        yield from self._vectors.values()
        for ours, parts in self._places.items():
            name = min(parts)
            if EXPERT.search(name):
                values = np.stack([self._read(parts[name], name) for name in by_number(parts)])
            else:
                values = self._ordered(name, self._read(parts[name], name))
            kind = self._kind_of(ours, values.shape)
            with np.errstate(over="ignore"):
                stored = gguf.quantize(np.ascontiguousarray(values), kind)
            if stored.dtype == np.float16 and not np.isfinite(stored).all():
                raise WeightsRefused(
                    f"tensor {name}: too large for float16; give --dtype bf16", param="dtype"
                )
            yield stored

    def _read(self, file: Path, name: str) -> Any:
        from safetensors import safe_open

        with safe_open(file, framework="pt") as tensors:
            return tensors.get_tensor(name).float().numpy()

    def _kind_of(self, ours: str, shape: tuple[int, ...]) -> Any:
        import gguf

        # What chooses experts is small, and llama.cpp wants it whole.
        if len(shape) < 2 or ".ffn_gate_inp." in ours:
            return gguf.GGMLQuantizationType.F32
        if self._kind == gguf.GGMLQuantizationType.Q8_0 and shape[-1] % Q8_0_BLOCK:
            return gguf.GGMLQuantizationType.F16
        return self._kind

    def _ordered(self, name: str, values: Any) -> Any:
        """Return `values` with the rows of each head in the order that rotation expects."""
        of_queries = ".q_proj." in name
        if not self._architecture.rotates_neighbours or not (of_queries or ".k_proj." in name):
            return values
        config = self._config
        heads = config.num_attention_heads if of_queries else config.num_key_value_heads
        halves = values.reshape(heads, 2, head_size_of(config) // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)


def by_number(names: Iterable[str]) -> list[str]:
    """Return names in the order of the numbers in them."""
    return sorted(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
