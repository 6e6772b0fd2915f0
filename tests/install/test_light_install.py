"""The base install: client and commands, without what a service needs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from support.requirements import PROJECT, ROOT, closure, installed

HEAVY = ("grpc", "sqlalchemy", "fastapi", "torch", "pydantic_settings", "nats", "numpy")
WITHOUT_PYDANTIC = "import sys; sys.modules['pydantic'] = None"
"""typer brings pydantic from 0.29 on, and not before: only the commands may meet it."""
BASE_ONLY = """
import importlib.abc, sys

class BaseOnly(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, BaseOnly())
"""
RUN = "import sys; from tuneloop.cli.app import main; sys.argv[0] = 'tuneloop'; main()"


@pytest.fixture(scope="module")
def base_only() -> str:
    """Code after which only packages of the base install can be imported."""
    base = closure(PROJECT["dependencies"]) | {"tuneloop"}
    missing = {
        top
        for top, names in installed().items()
        if not base & {canonicalize_name(name) for name in names}
    }
    assert set(HEAVY) <= missing
    return f"MISSING = {missing!r}\n{BASE_ONLY}"


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("module", ["client", "errors", "feedback", "policies", "rollouts"])
def test_the_base_install_imports(base_only: str, module: str) -> None:
    done = python(f"{base_only}\n{WITHOUT_PYDANTIC}\nimport tuneloop.{module}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["chat", "--help"],
        ["up", "--help"],
        ["keys", "create", "--help"],
        ["models", "list"],
        ["train", "--help"],
        ["backup", "--help"],
    ],
)
def test_the_base_install_has_these_commands(base_only: str, arguments: list[str]) -> None:
    done = python(f"{base_only}\n{RUN}", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    if arguments == ["--help"]:
        for name in ("chat", "feedback", "policies", "keys", "up", "train", "evaluate", "restore"):
            assert f" {name} " in done.stdout


def test_a_command_of_the_base_install_asks_the_service(base_only: str) -> None:
    done = python(f"{base_only}\n{RUN}", "policies", "list", "--url", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["up"], "all"),
        (["gateway"], "serve"),
        (["generation"], "generation"),
        (["reward"], "reward"),
        (["learner"], "learner"),
        (["models", "pull"], "generation"),
        (["train", "sft", "--model", "m", "--data", "d", "--output", "o"], "learner"),
        (["evaluate", "a", "b", "--prompts", "p"], "learner"),
        (["export", "--weights", "1", "--output", "o"], "learner"),
        (["import", "f.jsonl", "--kind", "pairs"], "learner"),
        (["backup", "target"], "learner"),
    ],
)
def test_a_command_that_needs_more_says_what_to_install(
    base_only: str,
    arguments: list[str],
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TUNELOOP_CACHE_DIR", str(tmp_path))
    done = python(f"{base_only}\n{RUN}", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("tuneloop: this command needs the package ")
    assert line.endswith(f': pip install "tuneloop[{extra}]"')


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [([], "generation,learner,reward"), (["--process", "gateway"], "serve")],
)
def test_the_doctor_says_what_to_install(base_only: str, arguments: list[str], wanted: str) -> None:
    done = python(f"{base_only}\n{RUN}", "doctor", *arguments)
    assert (done.returncode, done.stderr) == (1, "")
    assert f'pip install "tuneloop[{wanted}]"' in done.stdout


@pytest.mark.parametrize(
    ("code", "libraries"),
    [("import tuneloop.client", "import httpx"), (RUN, "import httpx, typer.rich_utils")],
)
def test_it_loads_no_package_that_its_libraries_do_not_load(code: str, libraries: str) -> None:
    """So `--help` takes half a second: one package too many takes as long again."""
    assert packages_loaded(code) - packages_loaded(libraries) <= {"typing_extensions"}


def packages_loaded(code: str) -> set[str]:
    """The packages from outside the standard library that code has loaded when it ends."""
    done = python(f"import atexit, sys\natexit.register(lambda: print(*sys.modules))\n{code}")
    names = {name.split(".")[0] for name in done.stdout.splitlines()[-1].split(" ")}
    return names & installed().keys()


@pytest.mark.slow
def test_pip_install_into_an_empty_environment(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("proto", "services", "learner"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    environment = {n: v for n, v in os.environ.items() if n not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=280
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "venv", "empty")
    beside = tmp_path / "empty" / "bin"
    run(str(beside / "python"), "-m", "pip", "install", str(source))
    for module in HEAVY:
        code = f"import importlib.util as u; assert u.find_spec({module!r}) is None"
        run(str(beside / "python"), "-c", code)
    run(str(beside / "python"), "-c", "import tuneloop.client")
    assert "Learn from files" in run(str(beside / "tuneloop"), "--help")
    gateway = subprocess.run([beside / "tuneloop-gateway"], capture_output=True, text=True)
    assert (gateway.returncode, "Traceback" in gateway.stderr) == (1, False)
    assert 'pip install "tuneloop[serve]"' in gateway.stderr
