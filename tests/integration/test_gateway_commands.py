"""The commands that talk to a running service, run as processes of their own would."""

import asyncio
import json
from pathlib import Path

import pytest
import typer
from support.client_records import recorded
from support.gateway_fakes import FakeGeneration
from support.gateway_stack import Stack
from typer.testing import CliRunner, Result

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.cli.chat.command import chat
from tuneloop.cli.feedback import feedback_app
from tuneloop.cli.forget import forget
from tuneloop.cli.keys import keys_app
from tuneloop.cli.policies import policies_app
from tuneloop.cli.signals import signals
from tuneloop.errors import Unavailable
from tuneloop.feedback import Comment, Comparison, Demonstration, Feedback, Metric
from tuneloop.v1 import learner_pb2

app = typer.Typer()
app.command()(chat)
app.add_typer(feedback_app, name="feedback")
app.add_typer(policies_app, name="policies")
app.add_typer(keys_app, name="keys")
app.command()(forget)
app.command()(signals)


async def run(stack: Stack, *arguments: str, typed: str | None = None) -> Result:
    environment = {"TUNELOOP_URL": stack.url, "TUNELOOP_API_KEY": ""}
    return await asyncio.to_thread(
        CliRunner().invoke, app, list(arguments), input=typed, env=environment
    )


def votes(stack: Stack) -> list[Feedback]:
    return [wire.decode_feedback(e.data) for e in stack.bus.streams[subjects.FEEDBACK].events]


async def test_chat_once(stack: Stack) -> None:
    result = await run(stack, "chat", "say", "hello", "--max-tokens", "5", "--system", "be brief")
    assert result.exit_code == 0, result.output
    assert "Hello, wörld" in result.stdout
    assert "[version 3, chatcmpl-" in result.stderr
    request = stack.generation.requests[0]
    assert [(m.role, m.content) for m in request.chat.messages] == [
        ("system", "be brief"),
        ("user", "say hello"),
    ]
    assert request.sampling.max_tokens == 5


async def test_chat_with_thumbs(stack: Stack) -> None:
    result = await run(stack, "chat", typed="/up\nhello\n/down\nmore\n/new\nafresh\n/what\n/quit\n")
    assert result.exit_code == 0, result.output
    assert "no answer to judge" in result.stderr
    assert [len(request.chat.messages) for request in stack.generation.requests] == [1, 3, 1]
    (vote,) = votes(stack)
    assert vote.completion_id == stack.generation.requests[0].completion_id
    assert vote.user_hash == stack.generation.requests[0].user_hash


async def test_chat_for_programs(stack: Stack) -> None:
    result = await run(stack, "chat", "hello", "--json", "--no-train", "--version", "2")
    answer = json.loads(result.stdout)
    assert (answer["policy_version"], answer["finish_reason"]) == (2, "stop")
    request = stack.generation.requests[0]
    assert (answer["id"], request.publish_rollout) == (request.completion_id, False)
    assert request.policy_version == 2
    result = await run(stack, "chat", "--json")
    assert (result.exit_code, "needs a question" in result.stderr) == (1, True)


async def test_every_judgement_in_a_conversation(stack: Stack) -> None:
    typed = "/edit x\n/rate 1\n/again\n/undo\nhello\n/rate lots\n/rate 0.5\n+\n/comment odd\n"
    typed += "/comment\n/edit better\n/edit\n\nmore\n/compare two\n/help\n"
    result = await run(stack, "chat", typed=typed)
    assert result.exit_code == 0, result.output
    given = [str(vote.kind) for vote in votes(stack)]
    assert given == ["rating", "thumb", "comment", "demonstration"]
    assert votes(stack)[-1].judgement == Demonstration(text="better")
    # The conversation went on from the better answer.
    assert stack.generation.requests[-1].chat.messages[1].content == "better"
    assert result.stderr.count("no answer to judge") == 2
    assert "/compare [N]" in result.stderr
    # A number, a thumb and an edit; of a comment that is not known.
    assert result.stderr.count("the next version learns from it") == 3
    assert result.stderr.count("Stored.") == 1


async def test_comparison_in_a_conversation(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_the_second_on(later: object, before: object) -> property:
        return property(lambda self: later if len(self.requests) > 1 else before)

    generation = FakeGeneration
    monkeypatch.setattr(generation, "policy_version", from_the_second_on(4, 3))
    monkeypatch.setattr(generation, "pieces", from_the_second_on(("An", "other"), ("One",)))
    stack.learner.effects = [
        learner_pb2.Effect(policy_version=4, text=text, logprob_before=-4, logprob_after=after)
        for text, after in (("chosen", -3), ("rejected", -4))
    ]
    result = await run(stack, "chat", typed="hello\n/compare 4\n2\nmore\n")
    assert result.exit_code == 0, result.output
    (vote,) = votes(stack)
    first, second, third = stack.generation.requests
    assert second.policy_version == 4
    assert vote.judgement == Comparison(
        chosen=second.completion_id, rejected=(first.completion_id,)
    )
    assert "2 (version 4): Another" in result.stdout
    assert third.chat.messages[1].content == "Another"
    assert "Version 4 answers now; it was 3." in result.stderr
    better = "the better one is now 2.72 times as likely, the other one is now as likely as before"
    assert f"Version 4 learned from it: {better}." in result.stderr


async def test_a_failure_does_not_end_the_conversation(stack: Stack) -> None:
    stack.generation.fail = Unavailable("the engine died")
    result = await run(stack, "chat", typed="hello\n/again\n/up\n/quit\n")
    assert result.exit_code == 0, result.output
    assert "the engine died" in result.stderr
    assert "no answer to judge" in result.stderr


async def test_feedback(stack: Stack) -> None:
    result = await run(stack, "chat", "hello")
    completion_id = stack.generation.requests[0].completion_id
    result = await run(stack, "feedback", "thumb", completion_id, "up", "--id", "mine")
    assert result.stdout.strip() == "mine"
    result = await run(stack, "feedback", "show", "mine")
    assert "value: up" in result.stdout
    await run(stack, "chat", "hello again")
    other = stack.generation.requests[1].completion_id
    result = await run(stack, "feedback", "comparison", completion_id, other)
    assert result.exit_code == 0
    await run(stack, "feedback", "rating", completion_id, "0.5", "--user", "ann")
    await run(stack, "feedback", "ranking", other, completion_id)
    await run(stack, "feedback", "demonstration", completion_id, "-", typed="a better one")
    result = await run(stack, "feedback", "comment", completion_id, "too", "long", "--json")
    assert json.loads(result.stdout)["status"] == "accepted"
    await run(stack, "feedback", "metric", completion_id, "task_solved", "true")
    await run(stack, "feedback", "metric", completion_id, "seconds", "3.5")
    for wrong in ("nan", "yes"):
        result = await run(stack, "feedback", "metric", completion_id, "seconds", wrong)
        assert (result.exit_code, "is not true, false or a number" in result.stderr) == (1, True)
    kinds = ["thumb", "comparison", "rating", "ranking", "demonstration", "comment"]
    kinds += ["metric", "metric"]
    assert [str(vote.kind) for vote in votes(stack)] == kinds
    assert votes(stack)[4].judgement == Demonstration(text="a better one")
    measured = [Metric(name="task_solved", value=True), Metric(name="seconds", value=3.5)]
    assert [vote.judgement for vote in votes(stack)[6:]] == measured
    result = await run(stack, "feedback", "thumb", "chatcmpl-made-up", "up")
    assert result.exit_code == 1
    assert "no completion 'chatcmpl-made-up'" in result.stderr


async def test_feedback_on_a_session(stack: Stack) -> None:
    assert (await run(stack, "feedback", "thumb", "chat 7", "up", "--session")).exit_code == 0
    await run(stack, "feedback", "rating", "--session", "chat 7", "0.5", "--user", "ann")
    await run(stack, "feedback", "metric", "chat 7", "solved", "true", "--session", "--id", "m")
    assert [(str(v.kind), v.session_id, v.completion_id) for v in votes(stack)] == [
        (kind, "chat 7", "") for kind in ("thumb", "rating", "metric")
    ]
    shown = await run(stack, "feedback", "show", "m")
    assert "session_id: chat 7" in shown.stdout


async def test_batch_list_and_retract(stack: Stack, tmp_path: Path) -> None:
    await run(stack, "chat", "hello")
    completion_id = stack.generation.requests[0].completion_id
    file = tmp_path / "thumbs.jsonl"
    thumb = {"kind": "thumb", "completion_id": completion_id, "value": "up", "id": "mine"}
    file.write_text(f"{json.dumps(thumb)}\n\n{json.dumps(thumb | {'value': 'down'})}\n")
    result = await run(stack, "feedback", "batch", str(file))
    assert (result.exit_code, result.stdout) == (1, "accepted 1, refused 1\n")
    assert "thumbs.jsonl:3: feedback 'mine' exists" in result.stderr
    result = await run(stack, "feedback", "batch", "-", "--json", typed=json.dumps(thumb))
    assert (result.exit_code, json.loads(result.stdout)[0]["id"]) == (0, "mine")
    for wrong in ("{", "[]"):
        result = await run(stack, "feedback", "batch", "-", typed=wrong)
        assert (result.exit_code, "-:1: not" in result.stderr) == (1, True)
    assert "mine is retracted" in (await run(stack, "feedback", "retract", "mine")).stdout
    stack.learner.recorded = [
        recorded("b", Comparison(chosen="one", rejected=("two",))),
        recorded("m", Metric(name="task_solved", value=False)),
        recorded("a", Comment(text="odd\nindeed")),
    ]
    result = await run(stack, "feedback", "list", "--limit", "1")
    assert "one over two" in result.stdout
    listed = await run(stack, "feedback", "list", "--kind", "metric")
    assert "task_solved false" in listed.stdout
    assert "more: --before 1" in result.stderr
    result = await run(stack, "feedback", "list", "--kind", "comment", "--status", "accepted")
    line = result.stdout.splitlines()[1]
    assert line.split() == ["2026-01-01T00:00:00", "comment", "accepted", "3", "a", "odd", "indeed"]
    tags = {"feature": "search", "beta": "true"}
    options = [word for name, value in tags.items() for word in ("--tag", f"{name}={value}")]
    await run(stack, "feedback", "list", *options)
    assert dict(stack.learner.calls[-1].tags) == tags
    result = await run(stack, "feedback", "list", "--tag", "feature")
    assert (result.exit_code, "name=value" in result.stderr) == (2, True)
    listed = json.loads((await run(stack, "feedback", "list", "--json")).stdout)
    assert [item["id"] for item in listed["data"]] == ["b", "m", "a"]


@pytest.mark.gateway(prices={"tuneloop": {"input": 100.0, "output": 1000.0}})
async def test_costs(stack: Stack) -> None:
    await run(stack, "chat", "hello")
    result = await run(stack, "keys", "usage", "--days", "2")
    rows = [line.split() for line in result.stdout.splitlines()]
    # The fake's prompts have 11 tokens, its completions 5.
    assert rows[1:] == [
        ["local", "tuneloop", "3", "11", "5", "0.0061"],
        ["all", "11", "5", "0.0061"],
    ]
    told = json.loads((await run(stack, "keys", "usage", "--json")).stdout)
    assert told["data"][0]["cost"] == pytest.approx(0.0061)


async def test_costs_without_prices(stack: Stack) -> None:
    await run(stack, "chat", "hello")
    result = await run(stack, "keys", "usage")
    assert (result.exit_code, "TUNELOOP_GATEWAY_PRICES" in result.stderr) == (0, True)
    assert len(result.stdout.splitlines()) == 1


async def test_undo_in_a_conversation(stack: Stack) -> None:
    result = await run(stack, "chat", typed="/undo\nhello\n/up\n/undo\n/undo\n")
    assert result.exit_code == 0, result.output
    assert "Taken back." in result.stderr
    assert result.stderr.count("no feedback to take back") == 2


async def test_forget(stack: Stack) -> None:
    refused = await run(stack, "forget", "ann", typed="n\n")
    assert (refused.exit_code, stack.learner.calls) == (1, [])
    result = await run(stack, "forget", "ann/bob", typed="y\n")
    assert "feedback_removed: 1" in result.stdout
    result = await run(stack, "forget", "ann", "--yes", "--json")
    assert json.loads(result.stdout)["policy_versions"] == [1]
    assert len({call.user_hash for call in stack.learner.calls}) == 2


async def test_policies(stack: Stack) -> None:
    result = await run(stack, "policies", "list")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[1][:3] == ["*", "3", "2"]
    assert [row[0] for row in rows[2:]] == ["2", "1", "0"]
    shown = json.loads((await run(stack, "policies", "show", "2", "--json")).stdout)
    assert shown["ancestors"] == [1, 0]
    shown_to_people = (await run(stack, "policies", "show", "3")).stdout
    assert "evaluation mean_reward" in shown_to_people
    assert ["fb-1", "kto", "4", "0"] in [line.split() for line in shown_to_people.splitlines()]
    listed = json.loads((await run(stack, "policies", "list", "--json")).stdout)
    assert listed["policy_version"] == 3
    assert "version 1" in (await run(stack, "policies", "promote", "1")).stdout
    assert "version 0" in (await run(stack, "policies", "rollback")).stdout
    assert "version 2" in (await run(stack, "policies", "rollback", "2")).stdout
    assert "paused" in (await run(stack, "policies", "pause")).stdout
    assert stack.learner.state == "paused"
    resumed = await run(stack, "policies", "resume", "--json")
    assert json.loads(resumed.stdout) == {"state": "waiting"}


async def test_a_version_is_shown_with_its_manifest_and_decisions(stack: Stack) -> None:
    shown = (await run(stack, "policies", "show", "3")).stdout
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "data.samples.kto 16" in lines
    assert "2023-11-14T22:15:03 gate gate pass within all bounds" in lines
    assert "candidate.kl 0.5" in lines
    # The items of a suite, the largest loss against version 0 first.
    worst = lines.index("CANDIDATE STABLE VERSION 0 ABILITIES: 2 OF 2 ITEMS, WORST FIRST")
    assert lines[worst + 1] == "0.250 0.750 facts: 2+2?"
    assert lines[worst + 2] == "0.750 0.750 0.500 facts: 1+1?"
    missing = await run(stack, "policies", "show", "9")
    metrics = [
        learner_pb2.MetricFigures(name="solved", is_boolean=True, count=4, mean=0.5),
        learner_pb2.MetricFigures(name="seconds", count=2, mean=3.5, margin=0.5),
        learner_pb2.MetricFigures(name="seldom", count=1, mean=-1),
    ]
    stack.learner.traffic = {2: learner_pb2.Traffic(rollouts=4, metrics=metrics)}
    measured = (await run(stack, "policies", "show", "2")).stdout
    lines = [" ".join(line.split()) for line in measured.splitlines()]
    # Wilson's interval of 2 in 4: 0.5 ± z · √(1/16 + z²/64) / (1 + z²/4), z = 1.96.
    assert "metric solved true 0.5 (0.15 to 0.85) of 4" in lines
    assert "metric seconds mean 3.5 (3 to 4) of 2" in lines
    assert "metric seldom mean -1 of 1" in lines
    assert (missing.exit_code, "no version 9" in missing.stderr) == (1, True)
    assert all(line == line.rstrip() for line in shown.splitlines())


async def test_failures_are_one_line(stack: Stack) -> None:
    stack.generation.fail = Unavailable("the engine died")
    stack.generation.fail_after = 2
    result = await run(stack, "chat", "hello")
    assert result.exit_code == 1
    assert "the engine died" in result.stderr
    result = await run(stack, "policies", "list", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "tuneloop up" in result.stderr
    assert "Traceback" not in result.output


async def test_signals_show_what_they_predict(stack: Stack) -> None:
    result = await run(stack, "signals")
    assert result.exit_code == 0, result.output
    _, copied, edited, summary = result.stdout.strip().splitlines()
    assert "90% (80% to 95%)" in copied
    assert "+0.060 (+0.020)" in copied
    assert copied.endswith("foretells thumbs")
    assert edited.split() == ["edited", "3", "0", "no", "0", "of", "30", "thumbs"]
    assert summary.startswith("80 of 1000 answers have a thumb, of which 70% are up")
    document = json.loads((await run(stack, "signals", "--json")).stdout)
    assert document["kinds"][0]["chance"] == 0.88
    assert document["kinds"][1]["chance"] is None
