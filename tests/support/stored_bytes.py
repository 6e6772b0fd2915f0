"""What a text looks like in files, and which files of a folder hold it."""

import base64
import json
import struct
from pathlib import Path

from tokenizers import Tokenizer


def forms_of(text: str, tokenizer: Tokenizer) -> dict[str, list[bytes]]:
    """Return what a text looks like on disk, in whatever it was written."""
    inside = text.encode()
    # What encodes to base64 in the middle of a longer text, whatever comes before it.
    parts = [inside[skip : skip + (len(inside) - skip) // 3 * 3] for skip in range(3)]
    # The first and last tokens depend on what stands around them.
    ids = tokenizer.encode(text, add_special_tokens=False).ids[2:-2]
    assert len(ids) > 6
    return {
        "UTF-8": [inside],
        "UTF-16": [text.encode("utf-16-le"), text.encode("utf-16-be")],
        "JSON": [json.dumps(text)[1:-1].encode()],
        "base64": [base64.b64encode(part) for part in parts],
        "tokens": [struct.pack(f"<{len(ids)}i", *ids), b"".join(map(varint, ids))],
    }


def varint(number: int) -> bytes:
    """Return a number as protobuf packs it."""
    low = number & 0x7F
    return bytes([low]) if number < 0x80 else bytes([low | 0x80]) + varint(number >> 7)


def found(folder: Path, forms: dict[str, list[bytes]]) -> set[str]:
    """Return the files that hold a text, with the form it has there."""
    places = set()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            for form, patterns in forms.items():
                if any(pattern in content for pattern in patterns):
                    places.add(f"{path.relative_to(folder)}: {form}")
    return places
