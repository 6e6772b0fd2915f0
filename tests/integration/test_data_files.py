"""Data out and in: files that pandas, `datasets` and TRL read, and that seed another ledger."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import httpx
import pandas
import pytest
import typer
from support.learner_events import (
    edit_tokens,
    make_comparison,
    make_edit,
    make_metric,
    make_rollout,
    make_score,
    make_thumb,
)
from typer.testing import CliRunner, Result

from tuneloop.errors import InvalidRequest, Unavailable
from tuneloop.learner.commands.export import export
from tuneloop.learner.commands.import_data import import_data
from tuneloop.learner.data.table import open_table
from tuneloop.learner.files import take_lock
from tuneloop.learner.intake.importer import ImportedRow, Importer
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.queue.build_samples import problem_of
from tuneloop.learner.ledger.queue.prompts import hold_out
from tuneloop.learner.ledger.reports.export import Wanted, pages
from tuneloop.learner.offline.import_file import seed
from tuneloop.learner.offline.service_client import RunningService
from tuneloop.rollouts import Rollout, RolloutSource
from tuneloop.weights.shapes import base_model_sha256

app = typer.Typer()
app.command("export")(export)
app.command("import")(import_data)

MEASURED = {"prompt": "a", "completion": "b", "name": "seconds", "value": 1.0}
ASK = [{"role": "user", "content": "Hi"}]


def says(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def data_dir(tiny_policy: Path, tmp_path: Path) -> Path:
    """A data folder of `tuneloop up` with every kind of feedback in its ledger."""
    root = tmp_path / "data"
    (root / "learner").mkdir(parents=True)
    (root / "model.json").write_text(json.dumps({"name": str(tiny_policy)}))
    ledger = Database.at(root / "learner" / "ledger.db")
    ledger.belongs_to({"base model": base_model_sha256(tiny_policy)})
    answers = [
        replace(
            make_rollout(f"c{n}", text=f"Answer {n}.", version=n, group_id="g", n=4),
            tags={"feature": "search", "half": str(n % 2)},
        )
        for n in range(4)
    ]
    evaluated = make_rollout("eval", source=RolloutSource.EVAL)
    held = make_rollout("held", prompt=(1, 9))
    recorder.record_rollouts(ledger, [*answers, evaluated, held], 0.0)
    hold_out(ledger, [(1, 9)])
    recorder.record_scores(
        ledger, [make_score("c1", 0.5), make_score("c1", 0.25, reward_model_version=2)], 0.0
    )
    events = [
        make_thumb("up", "c0"),
        make_thumb("changed", "c1", second=1),
        make_thumb("down", "c1", False, second=2),
        make_comparison("better", "c2", "c3", second=3, user="u2"),
        make_edit("edit", "c3", "As it should be.", second=4, user="u3"),
        make_thumb("held out", "held", second=5),
        make_thumb("waits", "nowhere", second=6),
        make_metric("solved before", "c0", "solved", True, second=7),
        make_metric("solved", "c0", "solved", False, second=8),
        make_metric("seconds", "c1", "seconds", 2.5, second=9),
        make_metric("held out too", "held", "seconds", 9.0, second=10),
    ]
    recorder.record_feedback(ledger, [(event, 0) for event in events], 0.0)
    ledger.close()
    return root


def ledger_of(data_dir: Path) -> Database:
    return Database.at(data_dir / "learner" / "ledger.db")


def rows_of(data_dir: Path, kind: str, **wanted: Any) -> list[dict[str, Any]]:
    ledger = ledger_of(data_dir)
    found = [json.loads(r) for page in pages(ledger, Wanted(kind=kind, **wanted)) for r in page]
    ledger.close()
    return found


def test_rows_are_what_users_say_now(data_dir: Path) -> None:
    thumbs = rows_of(data_dir, "thumbs")
    assert [(t["feedback_id"], t["label"], t["policy_version"]) for t in thumbs] == [
        ("up", True, 0),
        ("down", False, 1),
    ]
    assert thumbs[0]["prompt"] == ASK
    assert thumbs[0]["completion"] == says("Answer 0.")
    pairs = {row["kind"]: (row["chosen"], row["rejected"]) for row in rows_of(data_dir, "pairs")}
    assert pairs == {
        "thumb": (says("Answer 0."), says("Answer 1.")),
        "comparison": (says("Answer 2."), says("Answer 3.")),
        "demonstration": (says("As it should be."), says("Answer 3.")),
    }
    [shown] = rows_of(data_dir, "demonstrations")
    assert shown["completion"] == says("As it should be.")
    metrics = rows_of(data_dir, "metrics")
    assert [(m["feedback_id"], m["name"], m["value"], m["type"]) for m in metrics] == [
        ("solved", "solved", 0.0, "boolean"),
        ("seconds", "seconds", 2.5, "number"),
    ]
    assert metrics[0]["completion"] == says("Answer 0.")
    rollouts = rows_of(data_dir, "rollouts")
    assert [row["completion_id"] for row in rollouts] == ["c0", "c1", "c2", "c3"]
    assert [row["reward"] for row in rollouts] == [None, 0.25, None, None]
    assert rollouts[1]["reward_model_version"] == 2


def test_rows_carry_the_thought_apart_from_the_answer(data_dir: Path) -> None:
    ledger = ledger_of(data_dir)
    thought, none = make_rollout("t0", thought=2, text="Yes."), make_rollout("t1", text="No.")
    recorder.record_rollouts(ledger, [thought, none], 0.0)
    given = [
        make_thumb("thought", "t0", second=9),
        make_edit("edited", "t0", "Yes!", second=9),
        make_comparison("compared", "t1", "t0", second=9),
    ]
    recorder.record_feedback(ledger, [(event, 9) for event in given], 0.0)
    ledger.close()
    thumbs = {row["feedback_id"]: row for row in rows_of(data_dir, "thumbs")}
    assert thumbs["thought"]["completion"] == says("Yes.")
    assert (thumbs["thought"]["reasoning_text"], thumbs["up"]["reasoning_text"]) == (
        "Let me see.",
        "",
    )
    pairs = {row["feedback_id"]: row for row in rows_of(data_dir, "pairs")}
    columns = ("reasoning_text", "rejected_reasoning_text")
    # An edit replaces the answer, not the thought.
    assert [pairs["edited"][name] for name in columns] == ["Let me see."] * 2
    assert [pairs["compared"][name] for name in columns] == ["", "Let me see."]


def test_filters(data_dir: Path) -> None:
    assert [row["feedback_id"] for row in rows_of(data_dir, "thumbs", policy_version=1)] == ["down"]
    since = 1767225600.0 + 1.5
    assert [row["feedback_id"] for row in rows_of(data_dir, "thumbs", since=since)] == ["down"]
    assert rows_of(data_dir, "pairs", policy_version=9) == []
    tags = {"feature": "search", "half": "1"}
    for kind, count in (("pairs", 1), ("thumbs", 1), ("metrics", 1), ("rollouts", 2)):
        found = rows_of(data_dir, kind, tags=tags)
        assert [row["tags"] for row in found] == [["feature=search", "half=1"]] * count
        assert rows_of(data_dir, kind, tags={"half": "search"}) == []
    with pytest.raises(InvalidRequest):
        rows_of(data_dir, "comments")


def test_pages_lose_and_repeat_nothing(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {kind: rows_of(data_dir, kind) for kind in ("pairs", "thumbs", "metrics", "rollouts")}
    monkeypatch.setattr("tuneloop.learner.ledger.reports.export.PAGE", 1)
    assert {kind: rows_of(data_dir, kind) for kind in whole} == whole


def plain(completion_id: str) -> Rollout:
    return replace(make_rollout(completion_id), messages=())


def test_one_plain_prompt_makes_all_plain(data_dir: Path) -> None:
    ledger = ledger_of(data_dir)
    recorder.record_rollouts(ledger, [plain("p")], 0.0)
    recorder.record_feedback(ledger, [(make_thumb("plain", "p", second=9), 0)], 0.0)
    ledger.close()
    assert {type(row["prompt"]) for row in rows_of(data_dir, "thumbs")} == {str}
    assert rows_of(data_dir, "thumbs")[0]["prompt"] == "<user>Hi"
    assert {type(row["prompt"]) for row in rows_of(data_dir, "pairs")} == {list}


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.endswith("_time")} for row in rows]


@pytest.mark.parametrize("kind", ["pairs", "thumbs", "demonstrations", "metrics", "rollouts"])
def test_pandas_and_datasets_load_the_files(data_dir: Path, tmp_path: Path, kind: str) -> None:
    expected = rows_of(data_dir, kind)
    lines, table = tmp_path / f"{kind}.jsonl", tmp_path / "new" / f"{kind}.parquet"
    done = run("export", "--kind", kind, "--data-dir", data_dir, "--output", lines)
    assert done.exit_code == 0, done.output
    done = run(
        "export", "--kind", kind, "--format", "parquet", "--data-dir", data_dir, "--output", table
    )
    assert done.exit_code == 0, done.output
    cache = str(tmp_path / "cache")
    for builder, path in (("json", lines), ("parquet", table)):
        loaded = datasets.load_dataset(builder, data_files=str(path), cache_dir=cache)["train"]
        # A JSON file has no types: what reads like a time becomes one.
        assert without_times(loaded.to_list()) == without_times(expected)
    assert pandas.read_json(lines, lines=True)["prompt"].tolist() == [r["prompt"] for r in expected]
    frame = pandas.read_parquet(table)
    assert len(frame) == len(expected)
    assert list(frame.columns) == list(expected[0])
    assert list((tmp_path / "new").iterdir()) == [table], "nothing half-written is left"


def test_a_file_without_rows_still_has_columns(data_dir: Path, tmp_path: Path) -> None:
    table = tmp_path / "none.parquet"
    done = run(
        *("export", "--kind", "thumbs", "--policy-version", "9", "--format", "parquet"),
        *("--data-dir", data_dir, "--output", table),
    )
    assert done.exit_code == 0, done.output
    assert "0 rows" in done.stderr
    assert "label" in pandas.read_parquet(table).columns


def test_a_name_says_the_format_where_nothing_else_does(data_dir: Path, tmp_path: Path) -> None:
    table, lines = tmp_path / "pairs.parquet", tmp_path / "said.parquet"
    run("export", "--kind", "pairs", "--data-dir", data_dir, "--output", table)
    assert "chosen" in pandas.read_parquet(table).columns
    run("export", "--kind", "pairs", "--format", "jsonl", "--data-dir", data_dir, "--output", lines)
    assert "chosen" in json.loads(lines.read_text().splitlines()[0])


def test_standard_output_and_what_is_wrong(data_dir: Path) -> None:
    done = run("export", "--kind", "demonstrations", "--data-dir", data_dir)
    assert json.loads(done.stdout)["completion"] == says("As it should be.")
    for arguments, problem in (
        ((), "--kind or --weights"),
        (("--kind", "pairs", "--weights", "1"), "--kind or --weights"),
        (("--weights", "1"), "--output"),
        (("--kind", "pairs", "--format", "parquet"), "--output"),
        (("--kind", "pairs", "--url", "http://127.0.0.1:9"), "no answer from"),
        (("--kind", "pairs", "--data-dir", data_dir / "nowhere"), "no ledger there"),
    ):
        done = run("export", *arguments)
        assert done.exit_code != 0
        assert problem in done.stderr, arguments


@pytest.fixture
def importer(tiny_policy: Path, tmp_path: Path) -> Iterator[Importer]:
    ledger = Database.at(tmp_path / "other" / "ledger.db")
    yield Importer(ledger, "tuneloop", tiny_policy, clock=lambda: 1_800_000_000.0)
    ledger.close()


def database(importer: Importer) -> Database:
    return importer._database


def ready_counts(importer: Importer) -> dict[str, int]:
    found = {
        objective: ready.counts(database(importer), objective).ready
        for objective in ("sft", "kto", "dpo", "ppo", "grpo", "reward_model")
    }
    return {objective: count for objective, count in found.items() if count}


def test_an_export_seeds_another_ledger_once(
    data_dir: Path, importer: Importer, tmp_path: Path
) -> None:
    for kind, added in (("pairs", 3), ("thumbs", 2), ("demonstrations", 1), ("metrics", 2)):
        path = tmp_path / f"{kind}.parquet"
        run(
            "export",
            "--kind",
            kind,
            "--format",
            "parquet",
            "--data-dir",
            data_dir,
            "--output",
            path,
        )
        done = seed(open_table(str(path)), kind, importer.add)
        assert (done.added, done.known) == (added, 0)
        again = seed(open_table(str(path)), kind, importer.add)
        assert (again.added, again.known) == (0, added)
    kept = [
        json.loads(row)
        for page in pages(database(importer), Wanted(kind="metrics"))
        for row in page
    ]
    measured = {("solved", 0.0, "boolean"), ("seconds", 2.5, "number")}
    assert {(row["name"], row["value"], row["type"]) for row in kept} == measured
    # Pairs and thumbs are labels for the reward model too; PPO and GRPO never see them.
    assert ready_counts(importer) == {"dpo": 3, "kto": 2, "sft": 1, "reward_model": 5}
    found = [
        json.loads(row) for page in pages(database(importer), Wanted(kind="pairs")) for row in page
    ]
    assert {row["chosen"][0]["content"] for row in found} == {
        "Answer 0.",
        "Answer 2.",
        "As it should be.",
    }
    assert {row["policy_version"] for row in found} == {None}


def test_its_own_export_adds_nothing(data_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "thumbs.jsonl"
    run("export", "--kind", "thumbs", "--data-dir", data_dir, "--output", path)
    done = run("import", path, "--kind", "thumbs", "--data-dir", data_dir)
    assert done.exit_code == 0, done.output
    assert "0 rows added, 2 known before" in done.stdout


def rows(*given: dict[str, Any]) -> list[ImportedRow]:
    return [ImportedRow(place=f"file, line {n}", row=row) for n, row in enumerate(given, 1)]


def test_imports_are_the_tokens_of_the_policy(importer: Importer) -> None:
    importer.add(
        "thumbs",
        rows(
            {"prompt": ASK, "completion": says("Hello."), "label": True},
            {"prompt": "Once upon", "completion": " a time.", "label": 0},
        ),
    )
    taken, refusals = ready.take_samples(database(importer), "kto", 9)
    assert refusals == []
    sequences = {sample.desirable: sample.sequence for sample in taken}
    tokenizer = importer.tokens.tokenization.tokenizer
    chat = tokenizer.apply_chat_template([*ASK, *says("Hello.")], tokenize=False)
    liked = sequences[True]
    whole = [*liked.prompt_token_ids, *liked.completion_token_ids]
    assert tokenizer.decode(whole) == chat.rstrip("\n")
    assert whole[-1] in importer.tokens.tokenization.stop_token_ids
    assert liked.generation_logprobs == ()
    assert tokenizer.decode(sequences[False].prompt_token_ids).endswith("Once upon")


def test_people_may_agree(importer: Importer, tmp_path: Path) -> None:
    row = {"prompt": "a", "completion": "b", "label": True}
    path = tmp_path / "same.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (row, row, row | {"label": False})))
    done = seed(open_table(str(path)), "thumbs", importer.add)
    assert done.added == 3
    taken, _ = ready.take_samples(database(importer), "kto", 9)
    assert sorted(sample.desirable for sample in taken) == [False, True, True]


@pytest.mark.parametrize(
    ("kind", "bad", "problem"),
    [
        ("pairs", {"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
        ("pairs", {"prompt": "a", "chosen": "b", "rejected": 3}, "rejected is a int"),
        ("thumbs", {"prompt": "a", "completion": "", "label": True}, "completion is empty"),
        ("thumbs", {"prompt": "\ud800", "completion": "b", "label": True}, "not valid Unicode"),
        ("thumbs", {"prompt": "a", "completion": "b", "label": "maybe"}, "label is 'maybe'"),
        ("demonstrations", {"prompt": "a", "completion": ASK}, "not the assistant's"),
        ("demonstrations", {"prompt": "a", "completion": "word " * 5000}, "that fit"),
        ("metrics", MEASURED | {"name": "task solved"}, "name is 'task solved'"),
        ("metrics", MEASURED | {"value": "nan"}, "value is nan"),
        ("metrics", MEASURED | {"value": 1e9}, "not between"),
        ("metrics", MEASURED | {"value": 3.0, "type": "boolean"}, "not true or false"),
        ("metrics", MEASURED | {"type": "word"}, "not boolean or number"),
    ],
)
def test_a_row_that_is_wrong_is_named_and_nothing_is_added(
    importer: Importer, kind: str, bad: dict[str, Any], problem: str
) -> None:
    good = {"prompt": "a", "completion": "b", "chosen": "b", "rejected": "c", "label": True}
    good |= {"name": "seconds", "value": 1.0}
    with pytest.raises(InvalidRequest, match=rf"file, line 2: .*{problem}"):
        importer.add(kind, rows(good, bad))
    assert ready_counts(importer) == {}


def test_wrong_columns(importer: Importer) -> None:
    with pytest.raises(InvalidRequest, match="prompt, chosen, rejected"):
        importer.add("pairs", rows({"question": "a"}))
    with pytest.raises(InvalidRequest, match="kind"):
        importer.add("rollouts", rows({"prompt": "a"}))


def test_users_come_before_what_was_imported(importer: Importer) -> None:
    importer.add("thumbs", rows({"prompt": "a", "completion": "b", "label": True}))
    ledger = database(importer)
    recorder.record_rollouts(ledger, [make_rollout("c")], 0.0)
    late = make_thumb("user", "c", second=10**9)
    recorder.record_feedback(ledger, [(late, 1)], 0.0)
    [first], _ = ready.take_samples(ledger, "kto", 1, edit_tokens=edit_tokens)
    assert first.sample_id == "user"


def test_no_importance_ratio_without_a_sampler(importer: Importer) -> None:
    importer.add("thumbs", rows({"prompt": "a", "completion": "b", "label": True}))
    ledger = database(importer)
    with ledger.read() as connection:
        query = ready.ready_samples(*ready.COLUMNS)
        row = connection.execute(query).first()
    mapping = dict(row._mapping) | {"objective": "ppo"}
    assert problem_of(_Row(mapping)) == "no policy sampled it: no importance ratio is defined"


class _Row:
    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__ |= values


def test_a_stopped_service(data_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected\na,b,c\nd,e,f\n")
    lock = take_lock(data_dir / "learner")
    done = run("import", path, "--kind", "pairs", "--data-dir", data_dir)
    assert done.exit_code == 1
    assert "another learner works" in done.stderr
    lock.close()
    done = run("import", path, "--kind", "pairs", "--data-dir", data_dir)
    assert done.exit_code == 0, done.output
    assert "2 rows added" in done.stdout
    bad = tmp_path / "bad.csv"
    bad.write_text("prompt,chosen,rejected\na,b,c\nd,,f\n")
    done = run("import", bad, "--kind", "pairs", "--data-dir", data_dir)
    assert f"{bad}, line 3: chosen is empty" in done.stderr


def test_a_running_service() -> None:
    """What is sent, and what failures say."""
    asked: list[httpx.Request] = []
    answer = httpx.Response(200, json={"added": 2, "known": 1})

    def service(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answer

    client = RunningService("http://host/", "key", httpx.MockTransport(service))
    done = client.add("thumbs", rows({"prompt": "a"}))
    assert (done.added, done.known) == (2, 1)
    assert asked[-1].headers["authorization"] == "Bearer key"
    assert json.loads(asked[-1].content) == {
        "kind": "thumbs",
        "rows": [{"place": "file, line 1", "row": {"prompt": "a"}, "occurrence": 0}],
    }
    answer = httpx.Response(200, text='{"a":1}\n{"a":2}\n')
    assert list(client.export("pairs", {"policy_version": 3, "since": None})) == [
        ['{"a":1}', '{"a":2}']
    ]
    assert dict(asked[-1].url.params) == {"kind": "pairs", "policy_version": "3"}
    answer = httpx.Response(400, json={"error": {"message": "file, line 1: is empty"}})
    with pytest.raises(InvalidRequest, match="line 1: is empty"):
        client.add("thumbs", rows({"prompt": "a"}))
    answer = httpx.Response(503, text="<html>")
    with pytest.raises(Unavailable, match="status 503"):
        list(client.export("pairs", {}))
