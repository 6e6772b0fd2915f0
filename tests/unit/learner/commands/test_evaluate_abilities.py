"""`tuneloop evaluate --abilities`: both versions asked, the difference printed."""

import json
from pathlib import Path

from support.offline_data import write_jsonl
from typer.testing import CliRunner

from tuneloop.cli.app import app


def test_a_version_does_not_differ_from_itself(tmp_path: Path, tiny_policy: Path) -> None:
    rows = [{"prompt": f"is {n}?", "choices": ["yes", "no"], "answer": 0} for n in range(4)]
    suite = write_jsonl(tmp_path / "suite.jsonl", rows)
    given = ["evaluate", str(tiny_policy), str(tiny_policy), "--abilities", str(suite)]
    done = CliRunner().invoke(app, [*given, "--sampled", "2", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["b_minus_a"]["value"]["difference"] == 0
    assert len(found["a"]["items"]) == 4
    table = CliRunner().invoke(app, [*given, "--sampled", "0"])
    assert "4 items" in table.stdout


def test_prompts_or_abilities(tiny_policy: Path) -> None:
    done = CliRunner().invoke(app, ["evaluate", str(tiny_policy), str(tiny_policy)])
    assert done.exit_code == 2
    assert "either --prompts or --abilities" in done.stderr
