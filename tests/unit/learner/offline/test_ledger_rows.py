"""`--data ledger:…`: what a service's users said, as data to train on."""

from pathlib import Path
from typing import Any

import pytest
from support.learner_events import make_comparison, make_edit, make_rollout, make_thumb

from tuneloop.errors import FailedPrecondition, InvalidRequest
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.queue.prompts import hold_out
from tuneloop.learner.offline.sources.ledger_rows import read_ledger, read_ledger_prompts
from tuneloop.learner.offline.train import TrainOptions, train
from tuneloop.weights.shapes import base_model_sha256


@pytest.fixture
def data_dir(tiny_policy: Path, tmp_path: Path) -> Path:
    """A data folder whose ledger holds thumbs, a comparison and an edit."""
    database = Database.at(tmp_path / "learner" / "ledger.db")
    database.belongs_to({"base model": base_model_sha256(tiny_policy)})
    rollouts = [make_rollout(f"c{n}", prompt=(1, 5, 6 + n), text=f"Hello {n}.") for n in range(4)]
    rollouts.append(make_rollout("d0", prompt=(1, 5, 6), text="Bye.", completion=(9, 2)))
    recorder.record_rollouts(database, rollouts, 0.0)
    events = [make_thumb(f"t{n}", f"c{n}", n % 2 == 0, user=f"u{n}", second=n) for n in range(4)]
    events.append(make_comparison("p0", "d0", "c0", second=5, user="u9"))
    events.append(make_edit("e0", "c1", "Hello!", second=6, user="u8"))
    recorder.record_feedback(database, [(event, i) for i, event in enumerate(events)], 0.0)
    database.close()
    return tmp_path


def ledger(folder: Path) -> str:
    return f"ledger:{folder}"


def test_every_objective_finds_its_samples(data_dir: Path, tiny_policy: Path) -> None:
    thumbs = read_ledger("kto", ledger(data_dir), tiny_policy).samples
    assert [(t.sample_id, t.desirable) for t in thumbs[:2]] == [("t0", True), ("t1", False)]
    pairs = read_ledger("dpo", ledger(data_dir), tiny_policy).samples
    assert {p.chosen.completion_token_ids for p in pairs} >= {(9, 2)}
    [edit] = read_ledger("sft", ledger(data_dir), tiny_policy).samples
    assert edit.sequence.completion_token_ids[-1] == 2
    texts = read_ledger("reward_model", ledger(data_dir), tiny_policy).samples
    assert len(texts) >= 5


def test_prompts_are_those_users_asked_once(data_dir: Path, tiny_policy: Path) -> None:
    def prompts(**more: Any) -> list[tuple[int, ...]]:
        options = {"max_length": 100, "on_long": "error", **more}
        data = read_ledger_prompts(ledger(data_dir), tiny_policy, **options)
        return sorted(row.asked.token_ids for row in data.samples)

    assert prompts() == [(1, 5, 6), (1, 5, 7), (1, 5, 8), (1, 5, 9)]
    database = Database.at(data_dir / "learner" / "ledger.db")
    hold_out(database, [(1, 5, 9)])
    database.close()
    assert prompts() == [(1, 5, 6), (1, 5, 7), (1, 5, 8)]
    with pytest.raises(InvalidRequest, match="3 tokens in the prompt, more than the 2 that fit"):
        prompts(max_length=2)


def test_a_run_learns_from_the_ledger(
    data_dir: Path, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneloop.learner.offline.run.run.draw", lambda *a, **k: False)
    summary = train(
        TrainOptions(
            algorithm="kto",
            model=str(tiny_policy),
            data=ledger(data_dir),
            output=data_dir / "run",
            assignments=["threads=1", "batch_size=4", "abilities=none"],
        )
    )
    assert summary is not None
    assert summary["step"] == 1


def test_a_ledger_of_another_model_or_none_is_refused(
    data_dir: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    database = Database.at(data_dir / "learner" / "ledger.db")
    database.set_fact("base model", "another")
    database.close()
    with pytest.raises(FailedPrecondition, match="another model than --model"):
        read_ledger("kto", ledger(data_dir), tiny_policy)
    with pytest.raises(InvalidRequest, match="no ledger there"):
        read_ledger("kto", f"ledger:{tmp_path / 'absent'}", tiny_policy)
    Database.at(tmp_path / "empty" / "ledger.db").close()
    with pytest.raises(InvalidRequest, match="no feedback for kto"):
        read_ledger("kto", f"ledger:{tmp_path / 'empty'}", tiny_policy)
