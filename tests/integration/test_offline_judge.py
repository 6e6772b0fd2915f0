"""RLAIF offline: a judge's preferences in place of people's, asked once and kept."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from support.offline_data import assistant, rows_for, user, write_jsonl
from support.tiny_models import make_policy

from tuneloop.errors import InvalidRequest, SettingsError, Unavailable
from tuneloop.learner.offline.compare import EvaluateOptions, evaluate
from tuneloop.learner.offline.sources.judge import JudgeOptions
from tuneloop.learner.offline.train import TrainOptions, train
from tuneloop.learner.offline.versions import Versions


class ShortIsBetter(BaseHTTPRequestHandler):
    """A judge that prefers the shorter answer, and rates ten minus a tenth of the length."""

    asked: ClassVar[list[str]] = []
    silent = False

    def do_GET(self) -> None:
        self.reply({"data": [{"id": "judge", "owned_by": "somebody"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        content = body["messages"][-1]["content"]
        ShortIsBetter.asked.append(content)
        text = "I cannot say."
        if not ShortIsBetter.silent and "<answer_1>" in content:
            first = content.split("<answer_1>\n")[1].split("\n</answer_1>")[0]
            second = content.split("<answer_2>\n")[1].split("\n</answer_2>")[0]
            text = f"[[{1 if len(first) <= len(second) else 2}]]"
        elif not ShortIsBetter.silent:
            answer = content.split("<answer>\n")[1].split("\n</answer>")[0]
            text = f"[[{max(1.0, 10 - len(answer) / 10):.1f}]]"
        self.reply({"choices": [{"message": {"role": "assistant", "content": text}}]})

    def reply(self, document: Any) -> None:
        data = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeOptions]:
    monkeypatch.setattr("tuneloop.learner.offline.run.run.draw", lambda *a, **k: False)
    ShortIsBetter.asked.clear()
    ShortIsBetter.silent = False
    server = ThreadingHTTPServer(("127.0.0.1", 0), ShortIsBetter)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield JudgeOptions(url=f"http://127.0.0.1:{server.server_port}/v1", model="judge", votes=1)
    server.shutdown()
    thread.join()
    server.server_close()


def options(algorithm: str, model: Path, folder: Path, rows: Any, **more: Any) -> TrainOptions:
    settings = ["threads=1", "batch_size=4", "max_completion_length=6", "abilities=none"]
    settings += more.pop("settings", [])
    return TrainOptions(
        algorithm=algorithm,
        model=str(model),
        data=str(write_jsonl(folder / "data.jsonl", rows)),
        output=folder / "run",
        assignments=settings,
        **more,
    )


def test_dpo_learns_from_what_the_judge_prefers_of_its_own_answers(
    judge: JudgeOptions, tiny_policy: Path, tmp_path: Path
) -> None:
    summary = train(options("dpo", tiny_policy, tmp_path, rows_for("ppo", 6), judge=judge))
    assert summary is not None
    assert summary["step"] == 3
    assert summary["metrics"]["decided_fraction"]["first"] > 0
    assert summary["metrics"]["dpo_loss"]["first"] > 0
    assert summary["judge"].startswith("judge at http://")


def test_verdicts_are_asked_for_once(
    judge: JudgeOptions, tiny_policy: Path, tmp_path: Path
) -> None:
    given = options("dpo", tiny_policy, tmp_path, rows_for("ppo", 6), judge=judge)
    first = train(given)
    asked = len(ShortIsBetter.asked)
    assert asked > 0
    again = train(TrainOptions(**{**fields(given), "restart": True}))
    assert len(ShortIsBetter.asked) == asked
    assert first is not None
    assert again is not None
    assert again["weights_sha256"] == first["weights_sha256"]


def fields(given: TrainOptions) -> dict[str, Any]:
    return {name: getattr(given, name) for name in TrainOptions.__slots__}


def test_a_reward_model_learns_from_judged_answers(
    judge: JudgeOptions, tiny_reward_model: Path, tmp_path: Path
) -> None:
    rows = [
        {"prompt": user("yes"), "completions": [assistant("a " * n), assistant("b")]}
        for n in (3, 4, 5)
    ]
    summary = train(options("reward-model", tiny_reward_model, tmp_path, rows, judge=judge))
    assert summary is not None
    assert summary["metrics"]["pair_loss"]["first"] > 0
    assert len(ShortIsBetter.asked) == 6


def test_a_judge_may_rate_for_grpo(judge: JudgeOptions, tiny_policy: Path, tmp_path: Path) -> None:
    rows = rows_for("ppo", 2)
    summary = train(
        options("grpo", tiny_policy, tmp_path, rows, judge=judge, settings=["samples_per_prompt=4"])
    )
    assert summary is not None
    assert -1 <= summary["metrics"]["reward"]["first"] <= 1
    assert summary["rewards"] == ["judge=1"]


def test_a_judge_that_says_nothing_is_told(
    judge: JudgeOptions, tiny_policy: Path, tiny_reward_model: Path, tmp_path: Path
) -> None:
    ShortIsBetter.silent = True
    rows = [{"prompt": "yes", "completions": ["no", "please no"]}]
    with pytest.raises(Unavailable, match="no usable verdict"):
        train(options("reward-model", tiny_reward_model, tmp_path, rows, judge=judge))
    assert not (tmp_path / "run" / "verdicts.jsonl").exists()


def test_a_judge_that_is_away_is_told(
    judge: JudgeOptions, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneloop.reward.scorers.judge_client.FIRST_DELAY", 0.0)
    away = JudgeOptions(url="http://127.0.0.1:1/v1", model="judge", votes=1)
    rows = [{"prompt": "yes", "completions": ["no", "please no"]}]
    with pytest.raises(Unavailable, match=r"judge http://127\.0\.0\.1:1/v1: ConnectError"):
        train(options("dpo", tiny_policy, tmp_path, rows, judge=away))
    prompts = write_jsonl(tmp_path / "prompts.jsonl", rows_for("ppo", 2))
    asked = EvaluateOptions(
        a=str(tiny_policy),
        b=str(tiny_policy),
        prompts=str(prompts),
        versions=Versions(),
        judge=away,
    )
    monkeypatch.setattr("tuneloop.learner.offline.compare.measure", None)
    with pytest.raises(Unavailable, match="ConnectError"):
        evaluate(asked)


def test_a_judge_compares_two_versions(
    judge: JudgeOptions, tiny_policy: Path, tmp_path: Path
) -> None:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", rows_for("ppo", 4))
    other = make_policy(tmp_path / "other", seed=5)
    found = evaluate(
        EvaluateOptions(
            a=str(tiny_policy),
            b=str(other),
            prompts=str(prompts),
            versions=Versions(),
            judge=judge,
            max_tokens=6,
            samples_per_prompt=2,
        )
    )
    assert found.judged_by == "judge"
    assert found.win_rate is not None
    assert 0 <= found.win_rate.low <= found.win_rate.value <= found.win_rate.high <= 1


def test_what_a_judge_is_not_for_is_told(
    judge: JudgeOptions, tiny_policy: Path, tiny_reward_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="--judge is for"):
        train(options("sft", tiny_policy, tmp_path, rows_for("sft"), judge=judge))
    with pytest.raises(SettingsError, match="needs prompt and completions"):
        train(options("reward-model", tiny_reward_model, tmp_path, rows_for("ppo"), judge=judge))
    absent = JudgeOptions(url=judge.url, model="judge", constitution=tmp_path / "absent")
    with pytest.raises(SettingsError, match="constitution"):
        train(options("dpo", tiny_policy, tmp_path, rows_for("ppo"), judge=absent))
    rows = [{"prompt": "yes", "completions": ["no", "no"]}]
    with pytest.raises(InvalidRequest, match="prefers no answer"):
        train(options("dpo", tiny_policy, tmp_path, rows, judge=judge))
