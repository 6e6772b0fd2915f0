"""The benchmark of what is learned: its pieces on a few samples."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.learner_quality import QUICK, Journal, Runner, live, peers, thumbs
from benchmarks.quality_live import LiveJob, Users
from benchmarks.quality_report import report
from benchmarks.quality_task import (
    END,
    Job,
    hidden_reward,
    score_of,
    scored,
    words_of,
)
from tuneloop.feedback import Thumb
from tuneloop.learner.samples import TokenSequence

JOB = Job(task="conditional", method="grpo", side="tuneloop", seed=0, rate=1e-3, steps=1)


def sequence(prompt: tuple[int, ...], completion: tuple[int, ...]) -> TokenSequence:
    return TokenSequence(
        prompt_token_ids=prompt,
        completion_token_ids=completion,
        generation_logprobs=(-1.0,) * len(completion),
        temperature=1.0,
    )


def test_both_sides_are_scored_alike() -> None:
    prompt, completion = (3, 4), (1, 2, 5, END)
    assert score_of(prompt, completion, conditional=False) == pytest.approx(1 / 3)
    assert score_of(prompt, completion, conditional=True) == pytest.approx(2 / 3)
    (sample,) = scored([sequence(prompt, completion)], conditional=True)
    rewards = hidden_reward(JOB)(
        prompts=[words_of(prompt)], completions=[""], completion_ids=[list(completion)]
    )
    assert rewards == [sample.reward]


def test_users_answer_late_and_adversaries_say_the_opposite() -> None:
    job = LiveJob(seed=3, steps=1, flips=0.0, response_rate=0.5, delay=4)
    users = Users(job)
    answers = [sequence((1, 2), (2, 4, 6))] * 2000
    rollouts = users.read(0, answers)
    assert len({rollout.completion_id for rollout in rollouts}) == 2000
    arrived = [users.arriving(version) for version in range(6)]
    assert all(len(thumbs) > 100 for thumbs in arrived[:5])
    assert arrived[5] == []
    given = [event for events in arrived for event, _ in events]
    assert 850 < len(given) < 1150
    wrong = {e.user_hash for e in given if isinstance(e.judgement, Thumb) and not e.judgement.up}
    assert wrong == {"u0", "u1"}


def test_a_run_that_is_known_is_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).add({"part": "peers", "seed": 1, "rate": 0.003, "curve": [[0, 0.5], [2, 0.75]]})
    journal = Journal(path)
    assert journal.find("peers", {"seed": 1, "rate": 3e-3}) is not None
    assert journal.find("peers", {"seed": 2, "rate": 3e-3}) is None
    assert journal.find("live", {"seed": 1, "rate": 3e-3}) is None


def test_the_seed_that_chose_the_rate_is_not_reported() -> None:
    row = {"part": "peers", "task": "unconditional", "method": "dpo", "side": "tuneloop"}
    row["schedule"] = "constant"
    choose = random.Random(0)
    rows = [
        {**row, "seed": seed, "rate": 1e-3, "steps": 2, "curve": [[0, 0.5], [2, end]]}
        for seed, end in [(0, 0.75), (1, 0.25), (100, choose.random())]
    ]
    document = report(rows, "here", {100})
    (cell,) = document["peers"]
    assert cell["score"] == 0.5
    assert cell["seeds"] == [0, 1]
    assert cell["interval"] == pytest.approx((0.5 - 12.706 * 0.25, 0.5 + 12.706 * 0.25))
    assert len(document["tuning"]) == 1


def test_sides_are_compared_seed_by_seed() -> None:
    def row(side: str, seed: int, end: float) -> dict[str, Any]:
        key = {"part": "peers", "task": "unconditional", "method": "kto", "side": side}
        return {**key, "seed": seed, "rate": 1e-3, "steps": 2, "curve": [[0, 0.5], [2, end]]}

    rows = [row("tuneloop", 0, 0.75), row("tuneloop", 1, 0.5), row("tuneloop", 2, 0.0)]
    rows += [row("trl_tuned", 1, 0.25), row("trl_tuned", 0, 0.75)]
    ours = next(r for r in report(rows, "here", {100})["peers"] if r["side"] == "tuneloop")
    assert ours["above_trl"] == pytest.approx(0.125)
    assert ours["above_trl_interval"] == pytest.approx((0.125 - 1.588, 0.125 + 1.588), abs=1e-3)
    alone = report(rows[:1], "here", {100})["peers"][0]
    assert alone["interval"] is None


@pytest.mark.slow
def test_the_whole_benchmark_runs_and_goes_on_where_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = tmp_path / "journal.jsonl"
    for part in (peers, thumbs, live):
        part(Runner(Journal(path), 1), QUICK)
    lines = path.read_text().splitlines()
    assert {json.loads(line)["part"] for line in lines} == {"peers", "thumbs", "live"}
    for part in (peers, thumbs, live):
        part(Runner(Journal(path), 1), QUICK)
    assert path.read_text().splitlines() == lines
    document = report(Journal(path).rows, "here", {100})
    assert {cell["method"] for cell in document["peers"]} == {"dpo", "kto", "grpo", "rloo", "ppo"}
    assert len(document["peers"]) == 13
    assert all(0 <= cell["score"] <= 1 for cell in document["peers"])
