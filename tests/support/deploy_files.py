"""What is deployed, as the tools that deploy it understand the files."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "tuneloop"
VALUES = ROOT / "deploy" / "helm" / "test-values.yaml"
PROCESSES = ("gateway", "generation", "reward", "learner")

Document = dict[str, Any]


def tool(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one of the tools installed beside Python."""
    command = [str(Path(sys.executable).with_name(name)), *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


def composed(profile: str, **variables: str) -> Document:
    """compose.yaml with everything filled in, its tools too."""
    file = str(ROOT / "deploy" / "compose.yaml")
    profiles = ("--profile", profile, "--profile", "tools")
    given = ("--file", file, *profiles, "config", "--format", "json")
    done = tool("docker-compose", *given, **variables | {"COMPOSE_PROFILES": profile})
    assert done.returncode == 0, done.stderr
    document: Document = json.loads(done.stdout)
    for service in document["services"].values():
        # What has no value is not set in the container.
        known = service.get("environment", {}).items()
        service["environment"] = {name: value for name, value in known if value is not None}
    return document


def template(*settings: str, values: Sequence[Path] = ()) -> subprocess.CompletedProcess[str]:
    """`helm template` with the test's values, more files of `values`, and `--set-json`."""
    given = ["template", "tuneloop", str(CHART), "--namespace", "prod"]
    for file in (VALUES, *values):
        given += ["--values", str(file)]
    for setting in settings:
        given += ["--set-json", setting]
    return tool("helm", *given)


def rendered(*settings: str, values: Sequence[Path] = ()) -> list[Document]:
    """The manifests."""
    done = template(*settings, values=values)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def one(documents: list[Document], kind: str, name: str) -> Document:
    """The manifest of `kind` named `tuneloop-NAME`."""
    named = (kind, f"tuneloop-{name}")
    [found] = [d for d in documents if (d["kind"], d["metadata"]["name"]) == named]
    return found


def pods(documents: list[Document]) -> dict[str, Document]:
    """The pod's specification of each process, and of nats."""
    return {
        d["metadata"]["name"].removeprefix("tuneloop-"): d["spec"]["template"]["spec"]
        for d in documents
        if d["kind"] in ("Deployment", "StatefulSet")
    }


def environment_of(container: Document) -> dict[str, str]:
    """Variables with their values; empty where they come from a secret."""
    return {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}


class Dockerfile:
    """The instructions of each stage, in order, continuation lines joined."""

    def __init__(self) -> None:
        text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
        lines = [line for line in text.splitlines() if line.strip() and line[0] != "#"]
        self.stages: dict[str, list[tuple[str, str]]] = {}
        self.bases: dict[str, str] = {}
        self.arguments = dict(
            line.removeprefix("ARG ").split("=", 1)
            for line in lines[: next(n for n, line in enumerate(lines) if line[:4] == "FROM")]
        )
        for line in lines[len(self.arguments) :]:
            word, rest = line.split(maxsplit=1)
            if word == "FROM":
                base, _, name = rest.split()
                self.bases[name] = base
                self.stages[name] = []
            else:
                self.stages[name].append((word, " ".join(rest.split())))

    def all_of(self, stage: str) -> list[tuple[str, str]]:
        """Instructions of a stage after those of the stages it is made from."""
        base = self.bases[stage]
        return (self.all_of(base) if base in self.stages else []) + self.stages[stage]

    def environment(self, stage: str) -> dict[str, str]:
        """What ENV sets."""
        found: dict[str, str] = {}
        for word, rest in self.all_of(stage):
            if word == "ENV":
                found |= dict(pair.split("=", 1) for pair in rest.split())
        return found

    def last(self, stage: str, word: str) -> str:
        """The instruction that counts."""
        return [rest for w, rest in self.all_of(stage) if w == word][-1]
