"""llama.cpp, as the package xllamacpp carries it, in a process of its own.

`python llama_cpp.py FILE.gguf ANSWERS` reads requests from standard input as JSON, each with its
route, sends them to llama.cpp's own server, and writes the answers to a file; the server prints.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def ask_llama_cpp(
    file: Path, requests: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Load a GGUF and answer each request: a route, such as `/completion`, and a body."""
    answers = file.with_suffix(".answers.json")
    done = subprocess.run(
        [sys.executable, __file__, str(file), str(answers)],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[dict[str, Any]] = json.loads(answers.read_text())
    return found


def main(file: str, answers: str) -> None:
    import httpx
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx = 256
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.warmup = False
    # By default keys and values are kept in 16 bits, which decides where two tokens are as likely.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.use_jinja = True
    server = xllamacpp.Server(params)
    with httpx.Client(base_url=server.listening_address, timeout=120, trust_env=False) as client:
        found = [client.post(route, json=body) for route, body in json.load(sys.stdin)]
    Path(answers).write_text(json.dumps([one.raise_for_status().json() for one in found]))


if __name__ == "__main__":
    main(*sys.argv[1:])
