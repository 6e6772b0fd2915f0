"""When versions are made: few of them on a quiet service, and no judgement waits for long."""

from pathlib import Path

import pytest
from support.learner_parts import Parts

from tuneloop.learner.ledger.accounting import versions
from tuneloop.learner.schedule import LoopSchedule

BATCH = 16
TICK = 5


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    parts = Parts(folder=tmp_path, options={"batch_size": BATCH}, schedule=LoopSchedule)
    parts.trainer.full_batch = BATCH
    return parts


async def press(parts: Parts, thumbs: int, *, every: int, together: int = 1) -> dict[int, float]:
    """Press so many, `together` at a time; return how long each waited for its version."""
    pressed: dict[int, float] = {}
    published: dict[int, float] = {}
    start, earlier = parts.clock(), len(parts.used())
    while len(published) < thumbs:
        if len(pressed) < thumbs and (parts.clock() - start) % every == 0:
            parts.thumbs(earlier + len(pressed), together)
            pressed |= {n: parts.clock() for n in range(len(pressed), len(pressed) + together)}
        await parts.turn()
        learned = 0
        if newest := versions.head(parts.database, "policy"):
            used = parts.used().values()
            learned = sum(step <= newest.last_step for step in used) - earlier
        published |= {n: parts.clock() for n in range(len(published), learned)}
        parts.clock.now += TICK
    return {n: published[n] - pressed[n] for n in pressed}


def count_versions(parts: Parts) -> int:
    return versions.newest_version(parts.database, "policy")


@pytest.mark.slow
async def test_a_lone_user_makes_few_versions_and_waits_little(parts: Parts) -> None:
    """32 thumbs in ten minutes made 31 versions, when each was published after 10 seconds."""
    waited = await press(parts, 32, every=20)
    assert waited[0] == 5, "the first goes at once: after the wait of its batch"
    assert max(waited.values()) <= 5 + 60
    # One for the first thumb, then one a minute, the last for what is left.
    assert count_versions(parts) == 12


async def test_after_a_pause_a_thumb_goes_at_once_again(parts: Parts) -> None:
    await press(parts, 4, every=20)
    before = count_versions(parts)
    parts.clock.now += 300
    waited = await press(parts, 1, every=20)
    assert waited == {0: 5}
    assert count_versions(parts) == before + 1


async def test_a_busy_service_makes_a_version_of_two_full_steps(parts: Parts) -> None:
    waited = await press(parts, 10 * BATCH, every=TICK, together=BATCH)
    # The first step is the first after a pause; the other nine are four versions and a half.
    assert count_versions(parts) == 6
    assert max(waited.values()) <= 60


async def test_many_small_steps_amount_to_a_full_one(parts: Parts) -> None:
    """Four thumbs each 5 seconds are a quarter of a step: eight of those make two."""
    await press(parts, 1, every=TICK)
    await press_more(parts, 4, steps=7)
    assert count_versions(parts) == 1
    following = parts.loop.next_version()
    assert following is not None
    assert following.evidence == pytest.approx(7 * 4 / BATCH)
    assert (following.steps_done, following.steps_wanted, following.seconds_left) == (7, 2, 20)
    await press_more(parts, 4, steps=1)
    assert count_versions(parts) == 2


async def press_more(parts: Parts, together: int, *, steps: int) -> None:
    """Press, wait for the batch to be taken, and again."""
    for _ in range(steps):
        parts.thumbs(len(parts.used()), together)
        parts.clock.now += TICK
        await parts.turn()


async def test_a_restart_remembers_the_evidence_and_when_the_last_version_was(
    parts: Parts,
) -> None:
    await press(parts, 1, every=TICK)
    await press_more(parts, 4, steps=2)
    before = parts.loop.next_version()
    restarted = parts.again()
    restarted.training_run.restore()
    after = restarted.loop.next_version()
    assert before is not None
    assert before.evidence == 2 * 4 / BATCH
    assert after == before


async def test_a_clock_that_was_set_back_delays_no_version_for_long(parts: Parts) -> None:
    await press(parts, 1, every=TICK)
    parts.clock.now -= 86_400
    parts.thumbs(1, 1)
    parts.clock.now += TICK
    await parts.turn()
    following = parts.loop.next_version()
    assert following is not None
    assert following.seconds_left == 60
