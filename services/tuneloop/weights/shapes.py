"""Reads tensor names and shapes from safetensors headers, without torch, and checks that they fit.

Format: 8 bytes little-endian header length, JSON header of name to {dtype, shape, data_offsets},
then the data (https://github.com/huggingface/safetensors#format).
"""

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tuneloop.errors import WeightsRefused
from tuneloop.gpus.quantization import Quantization, quantization_of

MAX_HEADER_BYTES = 100_000_000
WORD_BITS = {"I32": 32, "U8": 8}
"""Bits of the numbers that weights are packed into."""
VOLATILE_CONFIG = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype"})
"""Configuration entries that do not affect which weights fit."""

Shape = tuple[int, ...]


class Entry(NamedTuple):
    """A tensor, as a header describes it."""

    shape: Shape
    dtype: str
    place: tuple[int, ...]
    """Where its bytes begin and end in the file."""


def read_header(path: Path) -> dict[str, Shape]:
    """Return shapes by name of one file. Raises `WeightsRefused` if it is cut or malformed."""
    return {name: entry.shape for name, entry in read_entries(path).items()}


def read_entries(path: Path) -> dict[str, Entry]:
    """Return what a file's header says of each tensor; raises as `read_header`."""
    with path.open("rb") as file:

        def read(start: int, end: int) -> bytes:
            file.seek(start)
            return file.read(end - start)

        return parse_entries(read, path.stat().st_size, path.name)


def parse_entries(read: Callable[[int, int], bytes], size: int, file_name: str) -> dict[str, Entry]:
    """Return what the header of `size` bytes says, of which `read` gives those from one to another.

    Raises `WeightsRefused`, with the file's name, if they are cut or malformed.
    """
    prefix = read(0, 8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
    if not 0 <= length <= min(size - 8, MAX_HEADER_BYTES):
        raise WeightsRefused(f"{file_name}: cut short or not safetensors", param=file_name)
    try:
        header = json.loads(read(8, 8 + length))
        header.pop("__metadata__", None)
        entries = {
            name: Entry(
                shape=tuple(int(d) for d in entry["shape"]),
                dtype=str(entry["dtype"]),
                place=tuple(8 + length + int(offset) for offset in entry["data_offsets"]),
            )
            for name, entry in header.items()
        }
        end = max((entry.place[1] for entry in entries.values()), default=8 + length)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise WeightsRefused(f"{file_name}: malformed header: {error}", param=file_name) from error
    if end != size:
        raise WeightsRefused(
            f"{file_name}: {size} bytes, the header asks for {end}", param=file_name
        )
    return entries


def tensor_shapes(folder: Path) -> dict[str, Shape]:
    """Return shapes by name of all safetensors files of `folder`. Raises `WeightsRefused`."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise WeightsRefused(f"{folder.name}: no safetensors file", param="files")
    shapes: dict[str, Shape] = {}
    for path in paths:
        for name, shape in read_header(path).items():
            if name in shapes:
                raise WeightsRefused(f"{path.name}: {name} stands in two files", param=name)
            shapes[name] = shape
    return shapes


def layer_shapes(folder: Path) -> dict[str, Shape]:
    """Return `tensor_shapes`, with the weights of packed layers as they are without packing."""
    shapes = tensor_shapes(folder)
    found = read_quantization(folder)
    if found is None:
        return shapes
    unpacked: dict[str, Shape] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in read_entries(path).items():
            unpacked |= unpacked_shape(path, name, entry, found)
    return shapes | unpacked


def read_quantization(folder: Path) -> Quantization | None:
    """Return how a folder's weights are quantized; None if they are not, or it has no config.

    Raises `WeightsRefused`.
    """
    if not (folder / "config.json").is_file():
        return None
    try:
        return quantization_of(read_config(folder, "config.json"))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"config.json: quantization_config cannot be read: {error!r}"
        raise WeightsRefused(problem, param="quantization_config") from error


def unpacked_shape(path: Path, name: str, entry: Entry, found: Quantization) -> dict[str, Shape]:
    """Return the name and shape, [out, in], of the weight that a tensor packs; else nothing."""
    layer, _, part = name.rpartition(".")
    weight = f"{layer}.weight"
    words = WORD_BITS.get(entry.dtype, found.bits) // found.bits  # of one packed number
    if part == "weight_packed":  # compressed-tensors
        return {weight: (entry.shape[0], entry.shape[1] * words)}
    if part == "qweight" and found.method == "awq":
        return {weight: (entry.shape[1] * words, entry.shape[0])}
    if part == "qweight":
        return {weight: (entry.shape[1], entry.shape[0] * words)}
    if part.startswith("bitsandbytes__"):
        start, end = entry.place
        with path.open("rb") as file:
            file.seek(start)
            state = json.loads(file.read(end - start))
        return {layer.removesuffix(".quant_state"): tuple(state["shape"])}
    return {}


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object of the folder. Raises `WeightsRefused`."""
    try:
        document = json.loads((folder / name).read_bytes())
    except (OSError, ValueError) as error:
        raise WeightsRefused(f"{name}: {error}", param=name) from error
    if not isinstance(document, dict):
        raise WeightsRefused(f"{name}: not a JSON object", param=name)
    return document


def base_model_sha256(folder: Path) -> str:
    """Return a SHA-256 over configuration and tensor names and shapes: equal if weights fit."""
    config = read_config(folder, "config.json")
    kept = {key: value for key, value in config.items() if key not in VOLATILE_CONFIG}
    document = {"config": kept, "tensors": tensor_shapes(folder)}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def may_be_omitted(name: str) -> bool:
    """Return whether a checkpoint may omit the tensor: tied heads and computed buffers."""
    buffers = (".position_ids", ".inv_freq", ".masked_bias")
    return name == "lm_head.weight" or name.endswith(buffers)


def check_full(base_folder: Path, folder: Path) -> None:
    """Raise `WeightsRefused` naming the first tensor that does not fit the base model."""
    base, given = tensor_shapes(base_folder), tensor_shapes(folder)
    for name in sorted(base.keys() | given.keys()):
        if name not in base or name not in given:
            if may_be_omitted(name):
                continue
            problem = "missing" if name in base else "not a tensor of the base model"
            raise WeightsRefused(f"{name}: {problem}", param=name)
        if base[name] != given[name]:
            raise WeightsRefused(
                f"{name}: shape {given[name]}, the base model has {base[name]}", param=name
            )


def check_adapter(base_folder: Path, adapter_folder: Path, max_rank: int) -> None:
    """Raise `WeightsRefused` unless the PEFT LoRA adapter fits the base model.

    Every tensor must be the A or B half of a linear layer of the base, both halves must be there,
    and no rank may exceed `max_rank`.
    """
    config = read_config(adapter_folder, "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise WeightsRefused("adapter_config.json: peft_type must be LORA", param="peft_type")
    if config.get("use_dora"):
        raise WeightsRefused("adapter_config.json: use_dora is not supported", param="use_dora")
    # GPT-2 stores its weights as [in, out]; PEFT records that in the adapter's configuration.
    transposed = bool(config.get("fan_in_fan_out"))
    base, given = layer_shapes(base_folder), tensor_shapes(adapter_folder)
    for module in sorted({module_of(name) for name in given}):
        half_a = given.get(f"{module}.lora_A.weight")
        half_b = given.get(f"{module}.lora_B.weight")
        if half_a is None or half_b is None:
            raise WeightsRefused(f"{module}: only one half of the adapter", param=module)
        weight = base_shape(base, module)
        check_halves(module, half_a, half_b, weight[::-1] if transposed else weight, max_rank)


def module_of(name: str) -> str:
    """Return the layer of an adapter tensor. Raises `WeightsRefused` for any other tensor."""
    for ending in (".lora_A.weight", ".lora_B.weight"):
        if name.endswith(ending):
            return name.removesuffix(ending)
    raise WeightsRefused(f"{name}: not the A or B half of a LoRA layer", param=name)


def base_names(module: str) -> Iterator[str]:
    """Yield the names that the layer's weight may have in the base model's files."""
    name = module.removeprefix("base_model.model.") + ".weight"
    yield name
    # Hub files of some models omit the outermost module ("transformer.h.0" is "h.0").
    yield name.partition(".")[2]
    if name == "lm_head.weight":
        yield "model.embed_tokens.weight"


def base_shape(base: Mapping[str, Shape], module: str) -> Shape:
    """Return the shape of the layer's weight. Raises `WeightsRefused` for an unknown layer."""
    for name in base_names(module):
        if name in base:
            return base[name]
    raise WeightsRefused(f"{module}: the base model has no such layer", param=module)


def check_halves(module: str, half_a: Shape, half_b: Shape, base: Shape, max_rank: int) -> None:
    """Check that A is [rank, in] and B [out, rank] for a base weight [out, in].

    Raises `WeightsRefused`.
    """
    fits = (
        len(half_a) == len(half_b) == 2
        and half_a[0] == half_b[1] > 0
        and (half_b[0], half_a[1]) == base
    )
    if not fits:
        raise WeightsRefused(
            f"{module}: LoRA halves {half_a} and {half_b} do not fit a weight of {base}",
            param=module,
        )
    if half_a[0] > max_rank:
        raise WeightsRefused(
            f"{module}: rank {half_a[0]}, at most {max_rank} is served", param=module
        )
