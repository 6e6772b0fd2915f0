"""Print what an image needs, from pyproject.toml: `needed.py PYPROJECT [EXTRA…]`.

Without the project itself, so that a layer of packages does not depend on our source. The versions
come from the constraints file that pip is given.
"""

import re
import sys
import tomllib
from pathlib import Path

OURS = re.compile(r"tuneloop\[([\w,-]+)\]")


def needed(project: dict[str, object], extras: list[str]) -> list[str]:
    """The dependencies of the project and of `extras`, with the extras these name in turn."""
    found = list(project["dependencies"])  # type: ignore[call-overload]
    optional: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    waiting = list(extras)
    while waiting:
        for requirement in optional[waiting.pop()]:
            ours = OURS.fullmatch(requirement)
            if ours is None:
                found.append(requirement)
            else:
                waiting += ours[1].split(",")
    return sorted(set(found))


if __name__ == "__main__":
    pyproject = tomllib.loads(Path(sys.argv[1]).read_text())
    sys.stdout.write("\n".join(needed(pyproject["project"], sys.argv[2:])) + "\n")
