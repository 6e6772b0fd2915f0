"""Files as people have them: each is imported, trained on and exported, or refused in one line."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from support.gateway_stack import Stack
from typer.testing import CliRunner, Result

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.cli.feedback import feedback_app
from tuneloop.feedback import Comment
from tuneloop.learner.commands.export import export
from tuneloop.learner.commands.import_data import import_data
from tuneloop.learner.commands.train import train
from tuneloop.learner.data.rows import read_samples
from tuneloop.learner.data.table import open_table
from tuneloop.learner.data.tokenize import PromptTokenizer
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.samples import Objective
from tuneloop.weights.shapes import base_model_sha256

FOLDER = Path(__file__).parents[1] / "data" / "awkward"
ALGORITHM = {"thumbs": "kto", "pairs": "dpo", "demonstrations": "sft"}
app = typer.Typer()
app.command("export")(export)
app.command("import")(import_data)
app.command("train")(train)
app.add_typer(feedback_app, name="feedback")

works = {
    "separators.jsonl": "thumbs",
    "mark-and-crlf.jsonl": "thumbs",
    "control.jsonl": "thumbs",
    "end-token.jsonl": "demonstrations",
    "control-tokens.jsonl": "demonstrations",
    "chinese.jsonl": "pairs",
    "japanese.jsonl": "pairs",
    "line-break.jsonl": "pairs",
    "index.csv": "thumbs",
    "floats.csv": "thumbs",
    "old-mac.csv": "thumbs",
    "line-breaks.csv": "thumbs",
    "nan.jsonl": "thumbs",
    "blank-lines.jsonl": "thumbs",
    "parts.jsonl": "demonstrations",
    "alpaca.json": "demonstrations",
    "metrics.csv": "metrics",
    "long.csv": "thumbs",
}
"""Files that are read, and what their rows are."""
trained = ("separators.jsonl", "chinese.jsonl", "parts.jsonl")
"""Those that a run takes a step on; of the others the reader sees all."""
refused = {
    "surrogate.jsonl": ("thumbs", "line 2: prompt is not valid Unicode"),
    "surrogate-elsewhere.jsonl": ("demonstrations", "line 1: note is not valid Unicode"),
    "latin-1.csv": ("thumbs", "line 3: not UTF-8 text: invalid start byte"),
    "utf-16.jsonl": ("thumbs", "line 1: not UTF-8 text: invalid start byte"),
    "blank.jsonl": ("thumbs", "line 2: completion is empty"),
    "no-prompt.jsonl": ("pairs", "line 1: chosen and rejected do not begin with the same prompt"),
    "missing.csv": ("thumbs", "line 3: label is empty"),
    "ragged.csv": ("thumbs", "line 3: fields do not match prompt, completion, label"),
    "semicolons.csv": ("thumbs", "the data has prompt;completion;label"),
    "quote.csv": ("thumbs", "line 3: not CSV: unexpected end of data"),
    "trailing-comma.jsonl": ("thumbs", "line 1: not JSON: Extra data"),
    "list.jsonl": ("thumbs", "line 1: a list, not an object with columns"),
    "objects.json": ("thumbs", "not JSON: Extra data: line 2 column 1"),
    "empty.jsonl": ("thumbs", "the file is empty"),
    "nested.jsonl": ("thumbs", "line 1: not JSON: maximum recursion depth"),
    "image.jsonl": ("demonstrations", "line 1: prompt message 1, content: only text parts"),
}
"""Files that are refused, and why."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all files, also those too large to keep."""
    folder = tmp_path_factory.mktemp("files")
    for file in FOLDER.glob("*.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "long.csv").write_text(f"prompt,completion,label,note\na,b,1,{'x' * 200_000}\n")
    deep = "[" * 100_000 + "]" * 100_000
    (folder / "nested.jsonl").write_text(
        f'{{"prompt": "a", "completion": "b", "label": true, "deep": {deep}}}\n'
    )
    return folder


@pytest.fixture
def data_dir(tiny_policy: Path, tmp_path: Path) -> Path:
    return make_data_dir(tmp_path / "data", tiny_policy)


def make_data_dir(root: Path, model: Path) -> Path:
    """Make the folder of a service that was never used."""
    (root / "learner").mkdir(parents=True)
    (root / "model.json").write_text(json.dumps({"name": str(model)}))
    ledger = Database.at(root / "learner" / "ledger.db")
    ledger.belongs_to({"base model": base_model_sha256(model)})
    ledger.close()
    return root


def run(*arguments: str | Path, **environment: str) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)


def train_on(data: Path, algorithm: str, model: Path, output: Path) -> Result:
    settings = ("max_steps=1", "batch_size=2", "abilities=none", "anchor_weight=0")
    return run(
        *("train", algorithm, "--model", model, "--data", data, "--output", output),
        *(part for setting in settings for part in ("--set", setting)),
    )


def assert_one_line(done: Result, file: str, problem: str) -> None:
    """Check that a command ended with a line that names the file and says what is wrong."""
    assert done.exit_code == 1, done.output
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.stderr.count("\n") == 1
    assert re.match(rf"tuneloop: \S*{re.escape(file)}", done.stderr), done.stderr
    assert problem in done.stderr


def texts_of(file: Path) -> list[Any]:
    """Return the texts of a file's rows, whatever they say of them beside."""
    columns = ("prompt", "completion", "chosen", "rejected", "label", "name", "value")
    return [[row.get(column) for column in columns] for row in open_table(str(file)).rows]


@pytest.mark.parametrize("name", works)
def test_what_is_read_comes_back_out(
    name: str, files: Path, data_dir: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    kind = works[name]
    done = run("import", files / name, "--kind", kind, "--data-dir", data_dir)
    assert done.exit_code == 0, done.output
    for format in ("jsonl", "parquet"):
        out = tmp_path / f"out.{format}"
        done = run("export", "--kind", kind, "--data-dir", data_dir, "--output", out)
        assert done.exit_code == 0, done.output
    assert texts_of(tmp_path / "out.jsonl") == texts_of(tmp_path / "out.parquet")
    rows = len(open_table(str(files / name)).rows)
    assert len(texts_of(out)) == rows
    # What was exported is what another ledger exports after it was imported there.
    other = make_data_dir(tmp_path / "other", tiny_policy)
    done = run("import", tmp_path / "out.jsonl", "--kind", kind, "--data-dir", other)
    assert (done.exit_code, f"{rows} rows added" in done.stdout) == (0, True), done.output
    run("export", "--kind", kind, "--data-dir", other, "--output", tmp_path / "again.jsonl")
    assert texts_of(tmp_path / "again.jsonl") == texts_of(tmp_path / "out.jsonl")
    if name in trained:
        done = train_on(files / name, ALGORITHM[kind], tiny_policy, tmp_path / "run")
        assert done.exit_code == 0, done.output
        assert (tmp_path / "run" / "run.json").exists()
    elif kind in ALGORITHM:
        algorithm, tokens = ALGORITHM[kind], PromptTokenizer(tiny_policy, max_length=None)
        for source in (files / name, tmp_path / "out.jsonl"):
            assert read_samples(Objective(algorithm), open_table(str(source)), tokens, "error")


@pytest.mark.parametrize("name", refused)
def test_what_is_wrong_is_a_line(
    name: str, files: Path, data_dir: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    kind, problem = refused[name]
    done = run("import", files / name, "--kind", kind, "--data-dir", data_dir)
    assert_one_line(done, name, problem)
    done = train_on(files / name, ALGORITHM[kind], tiny_policy, tmp_path / "run")
    assert_one_line(done, name, problem)


@pytest.mark.parametrize(
    ("name", "algorithm", "problem"),
    [
        ("sharegpt.jsonl", "sft", ""),
        ("tools.jsonl", "sft", "line 1: has functions, for which the model's chat template"),
        ("sharegpt-bot.jsonl", "sft", "line 2: conversations message 4, from: 'bot' is not"),
        ("ratings.csv", "reward-model", ""),
        ("infinite.jsonl", "reward-model", "line 1: rating is inf, not a finite number"),
        ("huge.jsonl", "reward-model", "line 1: rating is 999"),
    ],
)
def test_what_only_training_reads(
    name: str,
    algorithm: str,
    problem: str,
    files: Path,
    tiny_policy: Path,
    tiny_reward_model: Path,
    tmp_path: Path,
) -> None:
    model = tiny_reward_model if algorithm == "reward-model" else tiny_policy
    settings = ("max_steps=1", "batch_size=2")
    done = (
        train_on(files / name, algorithm, model, tmp_path / "run")
        if algorithm == "sft"
        else run(
            *("train", algorithm, "--model", model, "--data", files / name),
            *("--output", tmp_path / "run"),
            *(part for setting in settings for part in ("--set", setting)),
        )
    )
    if problem:
        assert_one_line(done, name, problem)
    else:
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("feedback-separators.jsonl", ""),
        ("feedback-null.jsonl", ""),
        ("feedback-nan.jsonl", ":2: "),
        ("feedback-surrogate.jsonl", ":2: "),
        ("feedback-huge.jsonl", ":1: "),
        ("feedback-list.jsonl", ":1: not a JSON object"),
        ("feedback-utf-16.jsonl", ": line 1: not UTF-8"),
        ("feedback-nested.jsonl", ":1: not JSON"),
    ],
)
async def test_a_batch_of_feedback(stack: Stack, name: str, problem: str, tmp_path: Path) -> None:
    answer = await asyncio.to_thread(ask, stack)
    file = tmp_path / name
    if name == "feedback-nested.jsonl":
        file.write_text("[" * 100_000 + "]" * 100_000)
    else:
        data = (FOLDER / name).read_bytes()
        for encoding in ("utf-8", "utf-16-le"):
            data = data.replace("COMPLETION".encode(encoding), answer.encode(encoding))
        file.write_bytes(data)
    done = await asyncio.to_thread(
        lambda: run("feedback", "batch", file, TUNELOOP_URL=stack.url, TUNELOOP_API_KEY="")
    )
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    if problem:
        assert done.exit_code == 1, done.output
        assert done.stderr.count("\n") == 1, done.stderr
        assert f"{name}{problem}" in done.stderr
        return
    assert done.exit_code == 0, done.output
    events = [wire.decode_feedback(e.data) for e in stack.bus.streams[subjects.FEEDBACK].events]
    comments = [e.judgement.text for e in events if isinstance(e.judgement, Comment)]
    expected = [json.loads(line) for line in file.read_text("utf-8-sig").split("\n") if line]
    assert comments == [body["text"] for body in expected if body["kind"] == "comment"]
    assert len(events) == len(expected)


def ask(stack: Stack) -> str:
    import httpx

    body = {"model": "tuneloop", "messages": [{"role": "user", "content": "hi"}]}
    response = httpx.post(f"{stack.url}/v1/chat/completions", json=body)
    return str(response.json()["id"])
