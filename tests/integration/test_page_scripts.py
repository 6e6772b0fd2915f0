"""The page's scripts in Node: each `*.test.mjs` of tests/node."""

from pathlib import Path

import pytest
from support.node_env import FOLDER, run_node


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.test.mjs")), ids=lambda path: path.name)
def test_script(script: Path) -> None:
    finished = run_node(["--test", "--test-reporter=spec", script])
    assert finished.returncode == 0, finished.stdout + finished.stderr
