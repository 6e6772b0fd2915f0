"""Print what `pip install -r FILE` would install, as a lock has it: `locked.py LOCK FILE`.

pip checks hashes only of requirements that are pinned themselves. So it is asked what it would
install with the lock's versions, and that is printed as the lock has it, with hashes.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ENTRY = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>\S+)(?:.*\\\n)*.*\n", re.MULTILINE)


def key(name: str) -> str:
    """Return a distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(lock: str, requirements: str) -> str:
    """Return a lock's entries of all that is still to install; exit if one is missing."""
    entries = {key(entry["name"]): entry for entry in ENTRY.finditer(lock)}
    pins = "\n".join(f"{entry['name']}=={entry['version']}" for entry in entries.values())
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write(pins)
        constraints.flush()
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-"]
        command += ["--constraint", constraints.name, "--requirement", requirements]
        report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    names = sorted(key(item["metadata"]["name"]) for item in report["install"])
    if missing := [name for name in names if name not in entries]:
        sys.exit(
            f"not in the lock: {', '.join(missing)}; add them to its .in file and run make lock"
        )
    return "".join(entries[name].group() for name in names)


if __name__ == "__main__":
    sys.stdout.write(locked(Path(sys.argv[1]).read_text(), sys.argv[2]))
