"""Compiles grammars beside decoding on a CPU, rather than in its place.

vLLM compiles a request's grammar with eight threads of the engine's priority, which on few cores
stops all streams for a second or two. Here it is one thread of low priority.
"""

import threading
from typing import TYPE_CHECKING, Any

import xgrammar

from tuneloop.host import lower_thread_priority

if TYPE_CHECKING:
    GrammarCompiler: Any = object
else:
    GrammarCompiler = xgrammar.GrammarCompiler


class QuietCompiler(GrammarCompiler):  # type: ignore[misc]
    """A compiler with one thread, which is the caller's."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **(options | {"max_threads": 1}))

    def compile_json_schema(self, *args: Any, **options: Any) -> Any:
        """Compile a JSON schema."""
        lower_priority()
        return super().compile_json_schema(*args, **options)

    def compile_structural_tag(self, *args: Any, **options: Any) -> Any:
        """Compile a structural tag."""
        lower_priority()
        return super().compile_structural_tag(*args, **options)


def lower_priority() -> None:
    """Let this thread run when others do not; the main one decodes, and stays as it is."""
    if threading.current_thread() is not threading.main_thread():
        lower_thread_priority()


def replace_compiler() -> None:
    """Let vLLM use the quiet compiler in this process; it makes one with the first grammar."""
    vars(xgrammar)["GrammarCompiler"] = QuietCompiler
