"""Compiles grammars that may crash, take minutes or fill the memory; `trial` runs it as a script.

It reads lines of JSON and answers each with one. The first is xgrammar's description of the
tokenizer; every other is a grammar, which a fork compiles and takes some steps through, under
limits. What happens to the fork is the verdict, and leaves this process as it was.
"""

import contextlib
import importlib.util
import json
import math
import os
import random
import resource
import select
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

CPU_SECONDS = 2.5
"""Of computing, for compiling and all steps. Most schemas take some milliseconds, but a string of
80 characters at most takes half a second, and more than one on a slow machine."""
WALL_SECONDS = 15.0
"""On a machine that has no time for it."""
NICENESS = 10
"""Streams come first."""
ADDRESS_BYTES = 2 * 2**30
"""Beyond what this process has."""
STACK_BYTES = 2**20
"""An eighth of what engines' threads have."""
STEPS = 64
"""Tokens sampled from the grammar: some compile at once, and cost much at every token."""

FINE, SLOW, HEAVY, FATAL, BUSY = "fine", "slow", "heavy", "fatal", "busy"
"""Verdicts. A grammar that the compiler refuses in words is fine: the engine passes that on."""
OUT_OF_MEMORY = 3
"""Exit status of a fork."""


class Library(NamedTuple):
    """The classes of xgrammar that are used here."""

    compiler: Any
    matcher: Any
    tokenizer_info: Any


def import_library() -> Library:
    """Import what compiles, without torch and transformers: they take 300 MB and seconds.

    xgrammar converts tensors and tokenizers with them, of which there are none here. A version of
    it that cannot do without gets them.
    """
    try:
        return import_without_torch()
    except Exception:
        for name in [m for m in sys.modules if m.split(".")[0] in {"xgrammar", "torch"}]:
            del sys.modules[name]
        sys.modules.pop("transformers", None)
        import xgrammar

        return Library(xgrammar.GrammarCompiler, xgrammar.GrammarMatcher, xgrammar.TokenizerInfo)


def import_without_torch() -> Library:
    """Import xgrammar's modules one by one, since its `__init__` imports everything."""
    modules: dict[str, Any] = sys.modules
    modules["torch"] = None  # the bindings do without, where it is not installed
    import tvm_ffi  # noqa: F401

    for name in ("torch", "transformers"):
        modules[name] = stand_in = types.ModuleType(name)
        stand_in.__dict__["__getattr__"] = lambda _: Unused
    spec = importlib.util.find_spec("xgrammar")
    assert spec is not None
    package = types.ModuleType("xgrammar")
    package.__path__ = list(spec.submodule_search_locations or ())
    modules["xgrammar"] = package
    importlib.import_module("xgrammar.load_binding")
    compiler, matcher, info = (
        importlib.import_module(f"xgrammar.{name}")
        for name in ("compiler", "matcher", "tokenizer_info")
    )
    return Library(compiler.GrammarCompiler, matcher.GrammarMatcher, info.TokenizerInfo)


class Unused:
    """Stands for classes and functions that are imported and not used."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


class Trial:
    """Compiles grammars for one tokenizer."""

    def __init__(self, library: Library, tokenizer: str) -> None:
        import numpy  # before forks, which would each import it in their own time

        self.numpy = numpy
        self.matcher = library.matcher
        info = library.tokenizer_info.deserialize_json(tokenizer)
        self.vocab_size = info.vocab_size
        # One thread, as a fork has no others. Nothing is kept, so nothing to cache.
        self.compiler = library.compiler(info, max_threads=1, cache_enabled=False)

    def run(self, kind: str, text: str) -> None:
        """Compile a schema or a structural tag, and take some steps. Raises what xgrammar does."""
        if kind == "schema":
            compiled = self.compiler.compile_json_schema(text)
        else:
            compiled = self.compiler.compile_structural_tag(text)
        self.take_steps(self.matcher(compiled))

    def take_steps(self, matcher: Any) -> None:
        """Sample a beginning: at each step one of the tokens that the grammar allows."""
        np = self.numpy
        mask = np.full((1, math.ceil(self.vocab_size / 32)), -1, dtype=np.int32)
        chooser = random.Random(0)  # noqa: S311 - the same steps each time
        for _ in range(STEPS):
            mask.fill(-1)
            matcher.fill_next_token_bitmask(mask)
            bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: self.vocab_size]
            allowed = np.flatnonzero(bits)
            if not len(allowed) or not matcher.accept_token(int(chooser.choice(allowed))):
                return
            if matcher.is_terminated():
                return


def limit_resources() -> None:
    """Set the limits of a fork. Beyond them it is killed, or out of memory."""
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    for limit, value in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + ADDRESS_BYTES),
        (resource.RLIMIT_STACK, STACK_BYTES),
        (resource.RLIMIT_CPU, math.ceil(CPU_SECONDS) + 1),
    ):
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (value if hard < 0 else min(value, hard), hard))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    # RLIMIT_CPU counts whole seconds.
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)


def run_limited(work: Callable[[], None]) -> int:
    """Run `work` as the fork, under its limits; return its exit status."""
    with open(os.devnull, "w") as nowhere:  # xgrammar's warnings
        os.dup2(nowhere.fileno(), 2)
    limit_resources()
    try:
        work()
    except MemoryError:
        return OUT_OF_MEMORY
    except Exception as error:
        return OUT_OF_MEMORY if "bad_alloc" in str(error) else 0
    return 0


def verdict_of(work: Callable[[], None]) -> str:
    """Run `work` in a fork, and return what came of it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = run_limited(work)
        finally:
            os._exit(status)
    descriptor = os.pidfd_open(child)
    ended = select.select([descriptor], [], [], WALL_SECONDS)[0]
    os.close(descriptor)
    if not ended:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not ended:
        return BUSY
    if code in {-signal.SIGPROF, -signal.SIGXCPU}:
        return SLOW
    return {0: FINE, OUT_OF_MEMORY: HEAVY}.get(code, FATAL)


def main() -> None:
    """Answer lines until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trial = Trial(import_library(), json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        kind, text = json.loads(line)
        verdict = verdict_of(lambda kind=kind, text=text: trial.run(kind, text))  # type: ignore[misc]
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
