"""Checks that models are present and complete, without loading one."""

import json
import struct
from pathlib import Path

from tuneloop.doctor.finding import Finding, fine, problem, warning
from tuneloop.errors import TuneloopError
from tuneloop.models.catalog import catalog

LONGEST_HEADER = 100 * 1024 * 1024


def check_model(what: str, reference: str, cache_dir: Path) -> Finding:
    """Check the model that a name, folder or hub id stands for."""
    from tuneloop.models.carried import carried_folder, is_built
    from tuneloop.models.resolve import check_folder

    pull = f"tuneloop models pull {reference}"
    if reference in catalog:
        model = catalog[reference]
        if not is_built(model, cache_dir):
            megabytes = f"{model.wheel_bytes / 1e6:.0f} MB"
            return warning(what, f"{reference} is not fetched yet ({megabytes})", pull)
        folder = carried_folder(model, cache_dir)
    elif Path(reference).expanduser().is_dir():
        folder, pull = (
            Path(reference).expanduser(),
            f"copy {reference} again from a complete copy",
        )
    else:
        return check_hub(what, reference, pull)
    try:
        check_folder(folder)
    except TuneloopError as error:
        return problem(what, error.message, pull)
    for weights in sorted(folder.glob("*.safetensors")):
        fault = file_problem(weights)
        if fault is not None:
            return problem(what, f"{weights}: {fault}", f"remove it, then: {pull}")
    return check_quantization(what, folder) or fine(what, f"{reference} in {folder}")


def check_quantization(what: str, folder: Path) -> Finding | None:
    """Check whether a quantized model can be served and trained on; None if it is fine."""
    from tuneloop.weights.shapes import read_quantization

    try:
        quantization = read_quantization(folder)
        if quantization is None:
            return None
        quantization.check_trainable(str(folder))
    except TuneloopError as error:
        return problem(what, error.message, "name another copy of the model")
    if missing := quantization.missing_packages():
        method = f"{folder} is quantized with {quantization.method}"
        packages = " and ".join(missing)
        return problem(
            what, f"{method}, which needs {packages}", f"pip install {' '.join(missing)}"
        )
    return None


def check_hub(what: str, reference: str, pull: str) -> Finding:
    """Check whether the hub's cache has a hub id."""
    from tuneloop.models.resolve import HUB_ID

    hub = HUB_ID.fullmatch(reference)
    if hub is None or reference.startswith((".", "/", "~")):
        known = ", ".join(catalog)
        return problem(what, f"{reference}: no such folder", f"name a folder, a hub id, or {known}")
    try:
        from huggingface_hub import try_to_load_from_cache
    except ModuleNotFoundError:
        return warning(
            what, f"{reference}: the hub's package is missing", "pip install huggingface-hub"
        )
    found = try_to_load_from_cache(hub[1], "config.json", revision=hub[2])
    if isinstance(found, str):
        return fine(what, f"{reference} in {Path(found).parent}")
    return warning(what, f"{reference} is not in the hub's cache; it is fetched at start", pull)


def file_problem(weights: Path) -> str | None:
    """Return what is wrong with a safetensors file, by its header and size, or None."""
    size = weights.stat().st_size
    with weights.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            return "cut off"
        (length,) = struct.unpack("<Q", prefix)
        if length > min(size - 8, LONGEST_HEADER):
            return "cut off, or not a safetensors file"
        try:
            header = json.loads(file.read(length))
            ends = [int(t["data_offsets"][1]) for n, t in header.items() if n != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return "not a safetensors file"
    wanted = 8 + length + max(ends, default=0)
    return None if size == wanted else f"has {size} bytes where its header says {wanted}"
