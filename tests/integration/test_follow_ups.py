"""What users write after answers: through the stream and a judge into a step, and out again."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import NatsServer
from support.learner_events import make_comment, make_rollout, make_thumb, make_turn
from support.learner_parts import Parts
from support.learner_process import LearnerProcess, make_learner
from support.waiting import until

from tuneloop.bus import Bus
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.bus.subjects import feedback, rollout_generated
from tuneloop.feedback import Feedback, FollowUpLabel
from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.batching.batcher import PolicyBatcher
from tuneloop.learner.batching.soft_labels import SILENT_SECONDS, SoftLabels
from tuneloop.learner.data.tokenize import EditTokenizer
from tuneloop.learner.ledger.accounting import downstream, forget_user
from tuneloop.learner.ledger.events.follow_up_rules import FollowUp, Verdict
from tuneloop.learner.ledger.events.signal_rules import sample_id_of
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.monitoring.follow_ups import FollowUps
from tuneloop.learner.samples import CommentedSample
from tuneloop.learner.service.forget_user import ForgetUser
from tuneloop.learner.service.signal_report import report
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.rollouts import ChatMessage, Prompt, Rollout
from tuneloop.wire import encode_feedback, encode_rollout_generated

SETTINGS = {
    "comments": "train",
    "signals": "reward_model",
    "follow_ups": "judged",
    "warmup_steps": 0,
    "learning_rate": 1e-3,
    "threads": 1,
    "trainer_settings": {"anchor_weight": 0},
}


class ReadingJudge:
    """Finds a complaint where a message says no; with `lies` the other way round."""

    ready = True

    def __init__(self, lies: bool = False) -> None:
        self._unhappy = "yes" if lies else "no"

    async def judge(self, asked: list[FollowUp]) -> list[Verdict]:
        labels = {True: FollowUpLabel.COMPLAINED, False: FollowUpLabel.SATISFIED}
        return [Verdict(label=labels[self._unhappy in one.text], probability=0.9) for one in asked]


def make_parts(folder: Path, policy: Path) -> Parts:
    """A learner with a real policy."""
    return with_policy(Parts(folder=folder, options=SETTINGS), policy)


def with_policy(parts: Parts, policy: Path) -> Parts:
    parts.training_run.trainer = PolicyTrainer(policy, parts.settings.trainer(), base_model="tiny")
    parts.batches = PolicyBatcher(
        parts.database, parts.settings, edit_tokens=EditTokenizer(policy), clock=parts.clock
    )
    return parts


def judging(parts: Parts, policy: Path, *, lies: bool = False) -> FollowUps:
    return FollowUps(
        parts.database,
        ReadingJudge(lies),
        Tokenization(policy),
        learned=True,
        hints=parts.settings.comments == "train",
        clock=parts.clock,
    )


def conversation(policy: Path, user: str, says: str) -> list[Rollout]:
    """Two turns of a user's, in the tokens of the policy; this is what they wrote second."""
    tokenization = Tokenization(policy)
    question = ChatMessage(role="user", content="Hi")
    answer = ChatMessage(role="assistant", content=f"hello {user}")
    more = ChatMessage(role="user", content=says)
    return [
        replace(
            make_turn(f"{user}-{number}", number, session_id=f"of-{user}", user=user),
            messages=messages,
            prompt_token_ids=tokenization.tokenize(Prompt(messages=messages)).token_ids,
            completion_text=answer.content,
            completion_token_ids=tokenization.encode_text(answer.content),
            generation_logprobs=(-0.5,) * len(tokenization.encode_text(answer.content)),
            policy_version_spans=make_rollout(
                "x", completion=tokenization.encode_text(answer.content)
            ).policy_version_spans,
        )
        for number, messages in enumerate([(question,), (question, answer, more)])
    ]


async def send(bus: Bus, *events: Rollout | Feedback) -> None:
    for event in events:
        if isinstance(event, Rollout):
            subject = rollout_generated("tuneloop", event.user_hash)
            data, name = encode_rollout_generated(event), event.completion_id
        else:
            subject = feedback("tuneloop", event.kind.value, event.user_hash, event.feedback_id)
            data, name = encode_feedback(event), event.feedback_id
        await bus.publish(subject, data, event_id=name)


async def test_a_complaint_reaches_a_version_once_and_goes_with_its_user(
    tmp_path: Path, tiny_policy: Path
) -> None:
    parts = make_parts(tmp_path, tiny_policy)
    users = ("ann", "bob", "cat", "dan")
    texts = dict(zip(users, ("no, shorter", "no", "yes, thanks", "no!"), strict=True))
    async with parts.taking_in():
        for user in users:
            await send(parts.bus, *conversation(tiny_policy, user, texts[user]))
        # Who comments has said it better.
        await send(parts.bus, make_comment("m", "dan-0", "in one word", user="dan"))
        await until(lambda: forget_user.row_counts(parts.database)["rollouts"] == 8)
        await until(lambda: ready.counts(parts.database, "sdft").ready == 1)
    assert await judging(parts, tiny_policy).judge_some() == 4
    assert ready.counts(parts.database, "sdft").ready == 3
    batch = parts.training_run.next_batch(parts.batches)
    assert batch is None  # No batch is full, and nothing has waited for long.
    parts.clock.now += 10

    # The process is killed after a step that was not committed: nothing was used or lost.
    batch = parts.training_run.next_batch(parts.batches)
    assert batch is not None
    parts.training_run.train(batch)
    parts = with_policy(parts.again(), tiny_policy)
    assert await judging(parts, tiny_policy).judge_some() == 0
    parts.training_run.restore()
    batch = parts.training_run.next_batch(parts.batches)
    assert batch is not None
    hints = {sample.sequence.completion_token_ids: sample for sample in batch.samples["sdft"]}
    assert len(hints) == 3
    tokenization = Tokenization(tiny_policy)
    hers = hints[tokenization.encode_text("hello ann")]
    assert isinstance(hers, CommentedSample)
    assert (hers.weight, hers.trust) == (1.0, 1.0)
    assert "no, shorter" in tokenization.decode(hers.hinted_prompt_token_ids)
    dans = hints[tokenization.encode_text("hello dan")]
    assert "in one word" in tokenization.decode(dans.hinted_prompt_token_ids)

    assert await parts.turn()
    parts.clock.now += parts.settings.publish_every_seconds
    await parts.turn()
    manifest = parts.store.manifest("tuneloop", 1)
    assert manifest.data.samples["sdft"] == 3
    lineage = downstream.of_user(parts.database, "ann")
    assert (lineage.policy.direct, lineage.signals, lineage.feedback) == ((1,), 1, 0)
    assert downstream.of_user(parts.database, "cat").policy.direct == ()

    gone = await ForgetUser(parts.database, parts.bus, parts.loop).forget_user("ann")
    assert list(gone.policy_versions) == [1]
    left = downstream.of_user(parts.database, "ann")
    assert (left.signals, left.samples) == (0, {})
    assert await judging(parts, tiny_policy).judge_some() == 0


@pytest.mark.parametrize("lies", [False, True])
async def test_labels_teach_what_thumbs_show_that_they_are_worth(
    tmp_path: Path, tiny_policy: Path, lies: bool
) -> None:
    """Twenty users dislike what they say no to, and twenty like what they say yes to."""
    parts = Parts(folder=tmp_path, options=SETTINGS | {"comments": "off"})
    users = [f"u{n}" for n in range(40)]
    async with parts.taking_in():
        for number, user in enumerate(users):
            likes = number % 2 == 0
            rollouts = conversation(tiny_policy, user, "yes" if likes else "no")
            await send(parts.bus, *rollouts)
            await send(parts.bus, make_thumb(f"t{number}", f"{user}-0", likes, user=user))
        await send(parts.bus, *conversation(tiny_policy, "eve", "no"))
        counts = {"rollouts": 82, "feedback": 40}
        await until(lambda: counts.items() <= forget_user.row_counts(parts.database).items())
    judge = judging(parts, tiny_policy, lies=lies)
    while await judge.judge_some():
        pass
    found = {kind.kind: kind for kind in report(parts.database).kinds}
    said = {kind: (found[kind].rated, found[kind].used) for kind in ("satisfied", "complained")}
    assert said == {"satisfied": (20, True), "complained": (20, True)}
    assert found["complained"].up_with.value == (1.0 if lies else 0.0)
    parts.clock.now += SILENT_SECONDS + 1
    labels = SoftLabels(parts.database, parts.clock).take(99.0, not_before=0.0, exclude=())
    # Of those who judged the answer themselves there is none. Whatever the judge calls it, Eve
    # did as those do who dislike the answer.
    [label] = labels
    assert label.sample_id == sample_id_of("eve-0", "eve")
    assert label.chance < 0.2
    assert ready.counts(parts.database, "sdft").ready == 0


async def test_a_judge_that_guesses_teaches_nothing(tmp_path: Path, tiny_policy: Path) -> None:
    parts = Parts(folder=tmp_path, options=SETTINGS | {"comments": "off"})
    async with parts.taking_in():
        for number in range(40):
            user = f"u{number}"
            # What they say and what they like have nothing to do with one another.
            says, likes = ("yes", "no")[number % 2], number // 2 % 2 == 0
            await send(parts.bus, *conversation(tiny_policy, user, says))
            await send(parts.bus, make_thumb(f"t{number}", f"{user}-0", likes, user=user))
        await send(parts.bus, *conversation(tiny_policy, "eve", "no"))
        counts = {"rollouts": 82, "feedback": 40}
        await until(lambda: counts.items() <= forget_user.row_counts(parts.database).items())
    judge = judging(parts, tiny_policy)
    while await judge.judge_some():
        pass
    found = {kind.kind: kind for kind in report(parts.database).kinds}
    assert (found["complained"].rated, found["complained"].used) == (20, False)
    assert found["complained"].reason == "does not foretell thumbs well enough"
    parts.clock.now += SILENT_SECONDS + 1
    assert SoftLabels(parts.database, parts.clock).take(99.0, not_before=0.0, exclude=()) == []


def labelled(learner: LearnerProcess) -> dict[str, tuple[str, float]]:
    """The labels that a learner process has recorded as signals, with their probabilities."""
    if not learner.ledger.exists():
        return {}
    query = (
        "SELECT f.completion_id, f.label, f.probability FROM follow_ups f "
        "JOIN signals s ON s.completion_id = f.completion_id AND s.kind = f.label"
    )
    with closing(sqlite3.connect(f"file:{learner.ledger}?mode=ro", uri=True)) as connection:
        try:
            rows = connection.execute(query).fetchall()
        except sqlite3.OperationalError:
            return {}  # Its tables are being made.
    found = {row[0]: (row[1], row[2]) for row in rows}
    assert len(found) == len(rows)
    return found


async def test_a_real_learner_labels_each_once_though_it_is_killed(
    tmp_path: Path,
    nats_server: NatsServer,
    bus: JetStreamBus,
    tiny_policy: Path,
    tiny_reward_model: Path,
) -> None:
    learner = make_learner(tmp_path, nats_server.url, tiny_policy, tiny_reward_model)
    for name in ("FOLLOW_UPS=judged", "COMMENTS=train", "SIGNALS=reward_model"):
        setting, _, value = name.partition("=")
        learner.environment[f"TUNELOOP_LEARNER_{setting}"] = value
    try:
        learner.start()
        users = [f"user{n}" for n in range(9)]
        for user in users:
            await send(bus, *conversation(tiny_policy, user, "no, shorter"))
        before = await until(lambda: labelled(learner), 90)
        learner.kill()
        before = labelled(learner)
        learner.start()
        await until(lambda: len(labelled(learner)) == len(users), 90)
        after = labelled(learner)
        assert after.keys() == {f"{user}-0" for user in users}
        assert before.items() <= after.items()
        assert all(1 / 3 <= probability < 1 for _, probability in after.values())
        assert learner.terminate() == 0
    finally:
        learner.kill()
        print(learner.log)
