"""What libraries say while they load, of which nobody can make use: it stays in the log files."""

import re

CHATTER = re.compile(
    r"""
    ^\(\w[\w-]*\ pid=\d+\)\ (?:DEBUG|INFO|WARNING)   # vLLM's processes; their errors are shown
    | ^Loading\ safetensors\ checkpoint\ shards
    | Triton\ is\ (?:not\ )?installed
    | ^\[W\d+\ .*\ \w+\.cpp:\d+\]\ Warning           # PyTorch's C++
    | (?:Future|Deprecation|User)Warning:
    """,
    re.VERBOSE,
)


def is_worth_showing(line: str) -> bool:
    """Whether a line of a service belongs on the terminal."""
    return bool(line.strip()) and CHATTER.search(line) is None
