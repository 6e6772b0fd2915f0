"""Forgetting a user with a real nats-server: the ledger, every stream and the exports."""

import asyncio
from dataclasses import replace
from pathlib import Path

from support.learner_events import (
    make_edit,
    make_feedback,
    make_rollout,
    make_score,
    make_signal,
    make_thumb,
)
from support.learner_parts import Parts
from support.waiting import until

from tuneloop.bus import subjects
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.bus.streams import call_api
from tuneloop.feedback import Comment, Feedback, Retraction
from tuneloop.learner.ledger.accounting import forget_user
from tuneloop.learner.ledger.reports.export import KINDS, Wanted, pages
from tuneloop.learner.service.forget_user import ForgetUser
from tuneloop.rollouts import ChatMessage
from tuneloop.wire import (
    encode_feedback,
    encode_retraction,
    encode_rollout_generated,
    encode_rollout_scored,
    encode_signal,
    signal_event_id,
)

STREAMS = (
    subjects.ROLLOUTS,
    subjects.FEEDBACK,
    subjects.SIGNALS,
    subjects.DEAD_LETTERS,
    subjects.LEARNER,
)


async def publish_all(bus: JetStreamBus, user: str) -> None:
    """What a user leaves: answers, scores, thumbs, one taken back, and an event that is broken."""
    for number in range(4):
        name = f"{user}-c{number}"
        rollout, score = make_rollout(name, user=user), make_score(name)
        thumb = make_thumb(f"{name}-f", name, number % 2 == 0, user=user)
        generated = subjects.rollout_generated("tuneloop", user)
        scored = subjects.rollout_scored("tuneloop", user)
        given = subjects.feedback("tuneloop", "thumb", user, f"{name}-f")
        await bus.publish(generated, encode_rollout_generated(rollout), event_id=f"r-{name}")
        await bus.publish(scored, encode_rollout_scored(score), event_id=f"s-{name}")
        await bus.publish(given, encode_feedback(thumb), event_id=f"{name}-f")
    copied = make_signal(f"{user}-c0", user=user)
    done = subjects.signal("tuneloop", "copied", user)
    await bus.publish(done, encode_signal(copied), event_id=signal_event_id(copied))
    taken_back = Retraction(
        feedback_id=f"{user}-c3-f",
        kind=thumb.kind,
        policy="tuneloop",
        tenant="default",
        user_hash=user,
        retracted_time=thumb.accepted_time,
    )
    subject = subjects.feedback_retracted("tuneloop", user, f"{user}-c3-f")
    await bus.publish(subject, encode_retraction(taken_back), event_id=f"x-{user}")
    broken = subjects.rollout_generated("tuneloop", user)
    await bus.publish(broken, f"of {user}".encode(), event_id=f"broken-{user}")


async def stored(bus: JetStreamBus, stream: str) -> list[str]:
    """Every event of a stream: its subject, its headers and its data."""
    info = await call_api(bus.connection, f"STREAM.INFO.{stream}", {"subjects_filter": ">"}, 5.0)
    found = []
    for subject in info["state"].get("subjects") or {}:
        sequence = 0
        while (event := await bus.first_after(subject, sequence)) is not None:
            sequence = event.sequence
            found.append(f"{event.subject} {dict(event.headers)} {event.data!r}")
    return found


async def test_nothing_of_a_forgotten_user_is_left(tmp_path: Path, bus: JetStreamBus) -> None:
    parts = Parts(folder=tmp_path, bus=bus, options={"publish_every_steps": 1})  # type: ignore[arg-type]
    await publish_all(bus, "ann")
    await publish_all(bus, "bob")
    async with parts.taking_in():
        for table in ("rollouts", "feedback", "scores"):
            await until(lambda table=table: forget_user.row_counts(parts.database)[table] == 8)
        await until(lambda: forget_user.row_counts(parts.database)["signals"] == 2)
        while len(await stored(bus, subjects.DEAD_LETTERS)) < 2:
            await asyncio.sleep(0.01)
    await parts.turn()
    await parts.turn()
    before = {stream: await stored(bus, stream) for stream in STREAMS}
    assert all("ann" in "".join(before[stream]) for stream in STREAMS[:4])
    forgetting = ForgetUser(parts.database, bus, parts.loop)
    answer = await forgetting.forget_user("ann")
    assert (answer.rollouts_removed, answer.feedback_removed) == (4, 4)
    # Four answers, four scores, four thumbs, one taken back, one signal; one broken, and its dead
    # letter.
    assert answer.events_purged == 16
    assert {1} <= set(answer.policy_versions) <= {1, 2}
    for stream in STREAMS:
        left = await stored(bus, stream)
        assert not [event for event in left if "ann" in event]
        assert len(left) == len([event for event in before[stream] if "ann" not in event])
    for kind in KINDS:
        rows = [row for page in pages(parts.database, Wanted(kind=kind)) for row in page]
        assert "ann" not in "".join(rows)
    assert "bob" in "".join(
        row for page in pages(parts.database, Wanted(kind="thumbs")) for row in page
    )
    # A new learner, from the streams as they are, learns nothing of them again.
    async with parts.taking_in():
        late = make_rollout("ann-c9", user="ann")
        subject = subjects.rollout_generated("tuneloop", "ann")
        await bus.publish(subject, encode_rollout_generated(late), event_id="late")
        fresh = make_rollout("bob-c9", user="bob")
        subject = subjects.rollout_generated("tuneloop", "bob")
        await bus.publish(subject, encode_rollout_generated(fresh), event_id="fresh")
        await until(lambda: forget_user.row_counts(parts.database)["rollouts"] == 5)
    assert forget_user.forget_user(parts.database, "ann", parts.clock()).rollouts == 0


async def give(bus: JetStreamBus, judgement: Feedback) -> None:
    kind, user, name = judgement.kind, judgement.user_hash, judgement.feedback_id
    subject = subjects.feedback("tuneloop", kind, user, name)
    await bus.publish(subject, encode_feedback(judgement), event_id=name)


async def test_no_byte_of_their_texts_is_on_disk(tmp_path: Path, bus: JetStreamBus) -> None:
    parts = Parts(folder=tmp_path, bus=bus)  # type: ignore[arg-type]
    secret = "the-secret-of-ann"
    for user, text in (("ann", secret), ("bob", "the-story-of-bob")):
        rollout = make_rollout(f"{user}-c", user=user, text=text)
        asked = (ChatMessage(role="user", content=text),)
        full = replace(rollout, messages=asked, prompt_text=text, reasoning_text=text)
        subject = subjects.rollout_generated("tuneloop", user)
        await bus.publish(subject, encode_rollout_generated(full), event_id=f"{user}-c")
        noted = replace(make_thumb(f"{user}-t", f"{user}-c", user=user), metadata={"why": text})
        await give(bus, noted)
        await give(bus, make_feedback(f"{user}-m", f"{user}-c", Comment(text=text), user=user))
        await give(bus, make_edit(f"{user}-e", f"{user}-c", text, user=user))
        await bus.publish(subject, f"broken {text}".encode(), event_id=f"{user}-broken")
        elsewhere = subjects.rollout_generated("another", user)
        await bus.publish(elsewhere, f"not taken in {text}".encode(), event_id=f"{user}-waits")
    # Of what one says about the other's answer, either may be the one who is forgotten.
    await give(bus, make_edit("of-ann", "ann-c", f"{secret}!", user="bob"))
    await give(bus, make_edit("of-bob", "bob-c", f"{secret}?", user="ann"))
    async with parts.taking_in():
        # A broken one is among the dead letters before the good ones beside it are in the ledger.
        for table, rows in (("rollouts", 2), ("feedback", 8)):
            await until(lambda t=table, n=rows: forget_user.row_counts(parts.database)[t] == n)
        while len(await stored(bus, subjects.DEAD_LETTERS)) < 2:
            await asyncio.sleep(0.01)

    def files_with(text: str) -> set[str]:
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        return {path.name for path in files if text.encode() in path.read_bytes()}

    assert files_with(secret) >= {"1.blk", "ledger.db-wal"}
    answer = await ForgetUser(parts.database, bus, parts.loop).forget_user("ann")
    # Three events of rollouts, four of feedback, one of another's, one dead letter.
    assert (answer.events_purged, answer.events_left_on_disk) == (9, 0)
    assert files_with(secret) == set()
    assert files_with("the-story-of-bob") == {"1.blk", "ledger.db"}
