"""What an earlier version left on disk still works: a data folder, checkpoints, runs and exports.

`tests/data/README.md` says how it was made. What is read and written here is what users have: the
command line, HTTP, gRPC, settings by their old names, and files.
"""

import json
import os
import re
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from conftest import NatsServer
from safetensors.numpy import load_file
from support.e2e_client import wait_until
from support.learner_process import LearnerProcess
from support.ports import free_port
from support.waiting import until

from tuneloop.rpc.channel import connect
from tuneloop.supervisor.child import ServiceChild
from tuneloop.v1 import learner_pb2, learner_pb2_grpc

ARCHIVE = Path(__file__).parents[1] / "data" / "version-before.tar.gz"
TUNELOOP = str(Path(sys.executable).with_name("tuneloop"))
KINDS = ("pairs", "thumbs", "demonstrations")
ROUNDING = 1e-5
STEP = 6e-4
"""More than two steps of Adam differ by at the rate that the service had, 2e-4."""
"""What another processor may make of the last bits of a few steps at a learning rate of 1e-3."""


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """The folder with all that the earlier version left."""
    with tarfile.open(ARCHIVE) as archive:
        # The first releases of Python 3.11 know no filters yet.
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path / "before", **safe)
    return tmp_path / "before"


@pytest.fixture
def expected(before: Path) -> dict[str, Any]:
    """What the earlier version knew of it."""
    return dict(json.loads((before / "expected.json").read_text()))


def tuneloop(*arguments: str, folder: Path) -> str:
    """Run a command; what it printed, notes to the user first."""
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), "."])
    done = subprocess.run(
        [TUNELOOP, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


def rows_of(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def largest_difference(first: Path, second: Path) -> float:
    """Between the tensors of two files."""
    one, other = load_file(first), load_file(second)
    assert one.keys() == other.keys()
    return max(float(abs(one[name] - other[name]).max()) for name in one)


# The data folder, opened by the learner.


@pytest.fixture
def learner(before: Path, expected: Mapping[str, Any]) -> Iterator[LearnerProcess]:
    """A learner, not started, on the streams, the ledger and the checkpoints of the data folder."""
    data = before / "data"
    server = NatsServer(data_dir=data / "nats", port=free_port())
    server.start()
    settings = {
        "PORT": free_port(),
        "METRICS_PORT": free_port(),
        "MODEL": before / "models" / "policy",
        "REWARD_MODEL": before / "models" / "reward",
        "NATS_URL": server.url,
        "WEIGHTS_URI": data / "weights",
        "SIGNING_KEY_FILE": data / "keys" / "manifest_private.pem",
        "VERIFY_KEY_FILE": data / "keys" / "manifest_public.pem",
        "DATA_DIR": data / "learner",
    }
    own = {f"TUNELOOP_LEARNER_{name}": str(value) for name, value in settings.items()}
    changed = {"TUNELOOP_LEARNER_PUBLISH_EVERY_STEPS": "1", "OMP_NUM_THREADS": "1"}
    environment = own | expected["environment"] | changed
    process = LearnerProcess(folder=data, environment=environment)
    yield process
    process.kill()
    server.kill()
    print(process.log)


async def status_of(stub: Any) -> learner_pb2.GetStatusResponse | None:
    try:
        status: learner_pb2.GetStatusResponse = await stub.GetStatus(
            learner_pb2.GetStatusRequest(), timeout=5
        )
    except grpc.aio.AioRpcError:
        return None
    return status


@pytest.mark.slow
async def test_the_learner_takes_a_step_from_where_it_was(
    learner: LearnerProcess, before: Path, expected: Mapping[str, Any]
) -> None:
    known = expected["ledger"]
    newest = known["versions"]["policy"]
    learner.start()
    async with connect(f"127.0.0.1:{learner.environment['TUNELOOP_LEARNER_PORT']}") as channel:
        stub = learner_pb2_grpc.LearnerServiceStub(channel)
        status = await until(lambda: status_of(stub), 90)
        assert status.state == "paused"
        assert status.step == known["steps"]["policy"]
        assert status.policy_version == newest
        assert status.reward_model_version == known["versions"]["reward_model"]
        assert status.rollouts == known["rollouts"]
        assert status.feedback_events == sum(known["feedback"].values())
        assert {s.objective: s.used for s in status.samples if s.used} == known["uses"]
        await check_lineage(stub, newest)
        await stub.Resume(learner_pb2.ResumeRequest())
        made = before / "data" / "weights" / "tuneloop" / f"{newest + 1:08d}"
        await until(made.is_dir, 90)
    assert learner.terminate() == 0
    adapter = "adapter_model.safetensors"
    # What a judgement weighs has changed since: the step is another one, from the same weights.
    assert largest_difference(made / adapter, before / "next-step" / adapter) < STEP
    parent = made.with_name(f"{newest:08d}")
    assert ROUNDING < largest_difference(made / adapter, parent / adapter) < STEP
    kept = ("policy", "kind", "base_model_sha256", "algorithms", "parent", "data")
    found, wanted = (
        json.loads((folder / "manifest.json").read_text())
        for folder in (made, before / "next-step")
    )
    assert {name: found[name] for name in kept} == {name: wanted[name] for name in kept}
    assert left_waiting(learner.ledger) == 0


async def check_lineage(stub: Any, newest: int) -> None:
    """Each version's line, what it learned from, and the settings it was trained with."""
    objectives = set()
    for version in range(1, newest + 1):
        request = learner_pb2.GetLineageRequest(policy_version=version)
        lineage = await stub.GetLineage(request)
        assert list(lineage.ancestors) == list(range(version - 1, -1, -1))
        assert json.loads(lineage.settings_json)["batch_size"] == 8
        objectives |= {use.objective for use in lineage.uses}
    assert objectives == {"sft", "kto", "dpo", "ppo", "grpo"}


def left_waiting(ledger: Path) -> int:
    """Samples of the policy that no step has used."""
    query = "SELECT COUNT(*) FROM samples WHERE state = 'open' AND objective IN ('sft', 'kto')"
    with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as database:
        return int(database.execute(query).fetchone()[0])


# The whole service.


@pytest.mark.services
@pytest.mark.slow
def test_the_service_goes_on_from_a_backup_of_the_data_folder(
    before: Path, expected: Mapping[str, Any]
) -> None:
    known = expected["ledger"]
    told = tuneloop("backup", "copy", "--data-dir", "data", "--json", folder=before)
    made = json.loads(told[told.index("{") :])
    assert made["feedback"] == sum(known["feedback"].values())
    assert made["stable"] == known["stable"]
    tuneloop("restore", "copy", "--data-dir", "restored", folder=before)
    check_service(before, "restored", expected)


def test_a_backup_is_restored(before: Path, expected: Mapping[str, Any]) -> None:
    known = expected["ledger"]
    told = tuneloop("restore", "backup", "--data-dir", "restored", "--json", folder=before)
    restored = json.loads(told[told.index("{") :])
    assert restored["feedback"] == sum(known["feedback"].values())
    assert restored["stable"] == known["stable"]
    assert restored["versions"] == sum(known["versions"].values())
    assert restored["events"] > restored["feedback"]


def check_service(before: Path, data: str, expected: Mapping[str, Any]) -> None:
    """It serves the version that served, knows all feedback, and learns on."""
    known = expected["ledger"]
    arguments = ["--model", str(before / "models/policy"), "--engine", "transformers"]
    arguments += ["--reward-model", str(before / "models/reward")]
    service = ServiceChild(
        before / data,
        port=free_port(),
        arguments=arguments,
        environment=expected["environment"],
    )
    with service, httpx.Client(base_url=service.url, timeout=60) as client:
        service.wait_until_ready()
        message = {"role": "user", "content": "hello"}
        body = {"model": "tuneloop", "messages": [message], "max_tokens": 4}
        chat = client.post("/v1/chat/completions", json=body)
        assert chat.headers["x-policy-version"] == str(known["stable"])
        wait_until(lambda: learner_state(client) == "paused", "the learner is as it was left")
        for kind, count in known["feedback"].items():
            found = client.get("/v1/feedback", params={"kind": kind, "limit": 100}).json()
            assert len(found["data"]) == count
        # The completion's id is signed with a key of the data folder.
        thumb = {"kind": "thumb", "value": "up", "user": "zoe", "id": "since"}
        thumb["completion_id"] = known["completion_id"]
        assert client.post("/v1/feedback", json=thumb).status_code == 202
        assert client.post("/v1/learner/resume").status_code == 200
        wait_until(lambda: used(client, "since") and used(client, "pending-up"), "it learns on")
        assert min(used(client, "since")) > known["versions"]["policy"]
        assert client.get("/v1/feedback/taken-back").json()["status"] == "retracted"


def learner_state(client: httpx.Client) -> str:
    return str(client.get("/v1/learner").json()["state"])


def used(client: httpx.Client, feedback_id: str) -> list[int]:
    """The versions that learned from a feedback."""
    items = client.get("/v1/feedback", params={"limit": 100}).json()["data"]
    return next((list(i["used_by_versions"]) for i in items if i["id"] == feedback_id), [])


# Exports, and what they are made of.


@pytest.mark.slow
def test_feedback_is_exported_as_it_was(before: Path) -> None:
    for kind in (*KINDS, "rollouts"):
        arguments = ("--kind", kind, "--data-dir", "data", "--output", "again.jsonl")
        tuneloop("export", *arguments, folder=before)
        assert rows_of(before / "again.jsonl") == rows_of(before / "export" / f"{kind}.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_imported(kind: str, before: Path) -> None:
    rows = rows_of(before / "export" / f"{kind}.jsonl")
    # A pair of opposite thumbs names no feedback by which it could be known.
    rows = [row for row in rows if row["feedback_id"] is not None]
    assert import_rows(rows, kind, before) == ["0", str(len(rows))]
    for number, row in enumerate(rows):
        del row["feedback_id"]
        row["prompt"][0]["content"] = f"question {number}"
    assert import_rows(rows, kind, before) == [str(len(rows)), "0"]


def import_rows(rows: list[Any], kind: str, before: Path) -> list[str]:
    """How many were added, and how many were known."""
    (before / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("--kind", kind, "--data-dir", "data", "--base", "models/policy")
    told = tuneloop("import", "rows.jsonl", *arguments, folder=before)
    return re.findall(r"\d+", told.splitlines()[-1])


@pytest.mark.slow
def test_an_export_is_learned_from(before: Path) -> None:
    arguments = ["--model", "models/policy", "--data", "export/pairs.jsonl", "--output", "run"]
    tuneloop("train", "dpo", *arguments, "--set", "max_steps=1", folder=before)
    assert json.loads((before / "run" / "run.json").read_text())["step"] == 1


@pytest.mark.slow
def test_a_version_is_verified_and_exported_as_it_was(
    before: Path, expected: Mapping[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    version = str(expected["ledger"]["stable"])
    source = ("--data-dir", "data", "--base", "models/policy")
    tuneloop("export", "--weights", version, *source, "--output", "again", folder=before)
    again, export = before / "again", before / "export" / "model"
    named = {path.name for path in export.iterdir()}
    assert {path.name for path in again.iterdir()} == named | {"README.md"}
    name = "model.safetensors"
    assert largest_difference(again / name, export / name) < ROUNDING
    assert largest_difference(export / name, before / "models" / "policy" / name) > ROUNDING
    model = AutoModelForCausalLM.from_pretrained(export)
    prompt = AutoTokenizer.from_pretrained(export)("hello", return_tensors="pt")
    assert model(**prompt).logits.isfinite().all()


# Runs of `tuneloop train`.


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["kto", "ppo"])
def test_a_run_goes_on_where_it_was_killed(
    algorithm: str, before: Path, expected: Mapping[str, Any]
) -> None:
    run, straight = before / "runs" / algorithm, before / "finished" / algorithm
    saved = expected["runs"][algorithm]["saved"]
    arguments = expected["runs"][algorithm]["arguments"]
    figures = rows_of(run / "metrics.jsonl")[:saved]
    assert figures[-1]["step"] == saved
    tuneloop(*arguments, "--output", algorithm, folder=before / "runs")
    wanted = json.loads((straight / "run.json").read_text())
    summary = json.loads((run / "run.json").read_text())
    assert summary["step"] == wanted["step"] > saved
    assert summary["starts"] == 2
    assert summary["settings"] == wanted["settings"]
    again = rows_of(run / "metrics.jsonl")
    assert again[:saved] == figures
    assert [row["step"] for row in again] == list(range(1, wanted["step"] + 1))
    adapter = "adapter/adapter_model.safetensors"
    if algorithm == "kto":
        # Where completions are sampled another processor's last bits may make them others.
        assert largest_difference(run / adapter, straight / adapter) < 10 * ROUNDING
    assert load_file(run / adapter).keys() == load_file(straight / adapter).keys()


@pytest.mark.slow
def test_a_finished_run_is_known_as_such(before: Path, expected: Mapping[str, Any]) -> None:
    summary = before / "finished" / "kto" / "run.json"
    written = summary.read_bytes()
    arguments = expected["runs"]["kto"]["arguments"]
    tuneloop(*arguments, "--output", "../finished/kto", folder=before / "runs")
    assert summary.read_bytes() == written
