"""Grammars are compiled by one thread of low priority, and as before otherwise."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.vllm

SCHEMA = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'


def test_a_quiet_compiler_compiles_the_same(tiny_policy: Path) -> None:
    import xgrammar
    from transformers import AutoTokenizer

    from tuneloop.generation.vllm.grammars import QuietCompiler
    from tuneloop.host import BACKGROUND_NICENESS

    info = xgrammar.TokenizerInfo.from_huggingface(
        AutoTokenizer.from_pretrained(tiny_policy), vocab_size=384
    )
    plain = xgrammar.GrammarCompiler(info, max_threads=8).compile_json_schema(SCHEMA)
    quiet = QuietCompiler(info, max_threads=8, cache_enabled=True)
    before = os.getpriority(os.PRIO_PROCESS, 0)

    def compiled() -> tuple[Any, int]:
        found = quiet.compile_json_schema(SCHEMA)
        return found, os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    with ThreadPoolExecutor(1) as executor:
        found, priority = executor.submit(compiled).result()
    assert found.serialize_json() == plain.serialize_json()
    assert priority == max(before, BACKGROUND_NICENESS)
    # The thread that decodes is not slowed down, also if it compiles.
    quiet.compile_json_schema(SCHEMA)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
