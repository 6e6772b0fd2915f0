"""A model of the hub, where there is no network."""

import subprocess
import sys
from pathlib import Path


def test_an_unreachable_hub_says_so(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tuneloop.errors import Unavailable\n"
        "from tuneloop.models.resolve import resolve\n"
        "try: resolve('owner/name@main', Path(sys.argv[1]))\n"
        "except Unavailable as error: print(error.message)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
    answer = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "owner/name: the hub cannot be reached" in answer.stdout
