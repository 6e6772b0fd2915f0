"""The registry: every entry works, and adding one takes a module and a line."""

from pathlib import Path

import pytest
from support.learner_parts import Parts
from support.offline_data import rows_for, write_jsonl
from support.toy_algorithm import TOY

from tuneloop.errors import SettingsError
from tuneloop.learner.offline.run.metrics_log import read_figures
from tuneloop.learner.offline.train import TrainOptions, train
from tuneloop.learner.samples import POLICY_OBJECTIVES
from tuneloop.learner.trainer.algorithms import (
    algorithm_of,
    algorithms,
    offline_algorithms,
)
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line that enters the algorithm of `support.toy_algorithm`."""
    monkeypatch.setitem(algorithms, "toy", TOY)


def test_every_objective_has_an_algorithm_of_its_name() -> None:
    for objective in POLICY_OBJECTIVES:
        assert algorithm_of(objective, TrainerSettings()) is algorithms[objective]
    with pytest.raises(SettingsError, match="'dpo' does not learn from samples of 'kto'"):
        algorithm_of("kto", TrainerSettings(algorithms={"kto": "dpo"}))


@pytest.mark.usefixtures("toy")
async def test_a_new_algorithm_learns_online(tmp_path: Path, tiny_policy: Path) -> None:
    parts = Parts(folder=tmp_path, options={"algorithms": {"kto": "toy"}, "warmup_steps": 0})
    settings = parts.settings.trainer()
    assert settings.algorithms["kto"] == "toy"
    parts.training_run.trainer = PolicyTrainer(tiny_policy, settings, base_model="tiny")
    parts.thumbs(0, 8)
    assert await parts.turn()
    assert await parts.turn()
    manifest = parts.store.manifest("tuneloop", 1)
    assert "toy_liking" in manifest.metrics
    assert "kto_z" not in manifest.metrics
    assert manifest.data.samples["kto"] == 8
    assert set(parts.used()) == {f"f{n}" for n in range(8)}


@pytest.mark.usefixtures("toy")
def test_a_new_algorithm_learns_offline(
    tmp_path: Path, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneloop.learner.offline.run.run.draw", lambda *a, **k: False)
    assert "toy" in offline_algorithms()
    options = TrainOptions(
        algorithm="toy",
        model=str(tiny_policy),
        data=str(write_jsonl(tmp_path / "thumbs.jsonl", rows_for("kto"))),
        output=tmp_path / "run",
        assignments=[
            *("threads=1", "learning_rate=1e-3", "batch_size=12", "epochs=4"),
            "abilities=none",
        ],
    )
    summary = train(options)
    assert summary is not None
    assert (tmp_path / "run" / "adapter").is_dir()
    likings = [row["toy_liking"] for row in read_figures(tmp_path / "run" / "metrics.jsonl")]
    assert likings == sorted(likings)
    assert len(likings) == 4
    assert train(options) == summary
