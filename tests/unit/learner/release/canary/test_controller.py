"""The canary's life: routed, watched, decided about, carried out; also when all falls over."""

from pathlib import Path
from typing import Any

import pytest
from support.canary_trial import CANARY, STABLE, Trial, everybody

from tuneloop.errors import FailedPrecondition, Unavailable
from tuneloop.learner.ledger.accounting import decisions, versions


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(folder=tmp_path)


def state_of(trial: Trial) -> str:
    return versions.get_version(trial.database, "policy", CANARY).state.value


def outcomes(trial: Trial) -> list[str]:
    found = decisions.of_version(trial.database, "policy", CANARY)
    assert {d.kind for d in found} == {"canary"}
    assert {d.actor for d in found} == {"canary"}
    return [d.outcome for d in found]


async def started(trial: Trial) -> Trial:
    trial.canary.start(CANARY)
    await trial.tick()
    return trial


async def test_a_started_canary_is_routed_and_a_second_one_is_refused(trial: Trial) -> None:
    await trial.tick()
    assert await trial.route() is None
    await started(trial)
    route = await trial.route()
    assert route is not None
    assert (route.weights.policy_version, route.weights.uri, route.share) == (CANARY, "v2", 0.5)
    assert (trial.canary.version, state_of(trial)) == (CANARY, "canary")
    with pytest.raises(FailedPrecondition, match="version 2"):
        trial.canary.start(3)
    assert outcomes(trial) == ["start"]


async def judged_by_metric(
    tmp_path: Path, good: bool | float, bad: bool | float, **more: Any
) -> Trial:
    """A trial whose canary gets `bad` and whose stable version `good`, until it ends."""
    options = {"metric": "solved", "decide_by": "metric", **more}
    trial = Trial(folder=tmp_path, options=options)
    for number in range(30):
        await trial.answer(f"before{number}", measured=good + 0.01 * number if good != 1 else good)
    await started(trial)
    for user in everybody(120):
        route = await trial.route()
        on_canary = route is not None and route.takes(user)
        await trial.answer(user, measured=bad if on_canary else good)
        await trial.tick()
        if trial.canary.version is None:
            break
    return trial


async def test_one_that_a_metric_finds_worse_is_rolled_back(tmp_path: Path) -> None:
    trial = await judged_by_metric(tmp_path, good=True, bad=False)
    [(version, reason, numbers)] = trial.release.quarantined
    assert version == CANARY
    assert reason == "worse than stable: metric 0.000 against 1.000"
    assert numbers["metric"]["high"] <= 0


async def test_of_a_metric_less_may_be_better(tmp_path: Path) -> None:
    trial = await judged_by_metric(tmp_path, good=True, bad=False, higher_is_better=False)
    assert (trial.release.promoted, trial.release.quarantined) == ([CANARY], [])


async def test_numbers_are_compared_by_rank(tmp_path: Path) -> None:
    """So that a value of a billion is no more than the best."""
    trial = await judged_by_metric(tmp_path, good=3.5, bad=999_999_999.0)
    assert trial.release.promoted == [CANARY]
    worse = await judged_by_metric(
        tmp_path / "seconds", good=3.5, bad=999_999_999.0, higher_is_better=False
    )
    [(_, reason, _)] = worse.release.quarantined
    assert reason.startswith("worse than stable: metric 0.000 against")


@pytest.mark.slow
async def test_numbers_sent_under_the_name_of_a_boolean_are_not_compared(tmp_path: Path) -> None:
    trial = await judged_by_metric(tmp_path, good=True, bad=-1e8)
    assert trial.canary.version == CANARY, "nothing was measured of the canary"
    assert (trial.release.promoted, trial.release.quarantined) == ([], [])


async def test_one_that_users_vote_down_is_rolled_back(trial: Trial) -> None:
    await started(trial)
    for user in everybody(40):
        route = await trial.route()
        await trial.answer(user, up=route is None or not route.takes(user))
        await trial.tick()
        if trial.canary.version is None:
            break
    assert await trial.route() is None
    [(version, reason, numbers)] = trial.release.quarantined
    assert version == CANARY
    assert "thumbs 0.000 against 1.000" in reason
    assert numbers["thumbs"]["high"] <= 0
    assert numbers["thumbs"]["canary"] + numbers["thumbs"]["stable"] < 40
    assert trial.release.serving == STABLE
    assert outcomes(trial) == ["start", "roll_back"]
    recorded = decisions.of_version(trial.database, "policy", CANARY)[-1]
    assert recorded.numbers["thumbs"] == numbers["thumbs"]
    assert recorded.reason == reason


async def test_one_that_is_liked_is_promoted(trial: Trial) -> None:
    await started(trial)
    for number, user in enumerate(everybody(120)):
        route = await trial.route()
        await trial.answer(user, up=(route is not None and route.takes(user)) or number % 2 == 0)
        if number % 10 == 9:
            await trial.tick()
    assert trial.release.promoted == [CANARY]
    assert await trial.route() is None
    assert outcomes(trial) == ["start", "promote"]
    assert state_of(trial) == "stable"


async def test_traffic_from_before_and_from_other_versions_does_not_count(trial: Trial) -> None:
    for user in everybody(40):
        await trial.answer(user, version=CANARY, up=False)
        await trial.answer(user, version=STABLE, up=True)
    await started(trial)
    await trial.tick()
    assert trial.canary.version == CANARY


async def test_a_reward_that_falls_rolls_back_though_nobody_votes(trial: Trial) -> None:
    for user in everybody(60):
        await trial.answer(user, reward=5.0 + int(user[1:]) % 7)
    await started(trial)
    for user in everybody(60):
        route = await trial.route()
        low = route is not None and route.takes(user)
        await trial.answer(user, reward=-100.0 if low else 5.0 + int(user[1:]) % 7)
        await trial.tick()
    [(_, reason, _)] = trial.release.quarantined
    assert reason.startswith("worse than stable: reward")


async def test_errors_roll_back_though_nobody_judges(trial: Trial) -> None:
    trial.replica.counts = {STABLE: (1000, 5)}
    await started(trial)
    for look in range(1, 40):
        trial.replica.counts = {STABLE: (1000 + 9 * look, 5), CANARY: (0, look)}
        await trial.tick()
    [(_, reason, numbers)] = trial.release.quarantined
    assert reason.startswith("worse than stable: errors 1.000 against 0.000")
    assert numbers["errors"]["stable_mean"] == 0


async def test_equal_errors_of_a_process_that_restarts_are_no_reason(trial: Trial) -> None:
    await started(trial)
    for look in range(1, 60):
        process, count = divmod(look, 10)
        trial.replica.counted_by = f"process-{process}"
        trial.replica.away = look % 7 == 0
        trial.replica.counts = {STABLE: (8 * count, 2 * count), CANARY: (4 * count, count)}
        await trial.tick()
    assert trial.canary.version == CANARY


@pytest.mark.parametrize(
    ("action", "state", "promoted", "quarantined"),
    [
        ("hold", "retired", [], 0),
        ("promote", "stable", [CANARY], 0),
        ("roll_back", "quarantined", [], 1),
    ],
)
async def test_at_the_deadline_the_stated_action_is_taken(
    tmp_path: Path, action: str, state: str, promoted: list[int], quarantined: int
) -> None:
    trial = Trial(folder=tmp_path, options={"deadline_action": action, "deadline_seconds": 1000.0})
    await started(trial)
    await trial.answer("u1", up=False)
    await trial.tick(900)
    assert trial.canary.version == CANARY
    await trial.tick()
    assert trial.canary.version is None
    assert await trial.route() is None
    assert state_of(trial) == state
    assert trial.release.promoted == promoted
    assert len(trial.release.quarantined) == quarantined
    assert outcomes(trial) == ["start", action]


async def test_one_that_was_never_loaded_is_not_promoted_at_the_deadline(tmp_path: Path) -> None:
    options = {"deadline_action": "promote", "deadline_seconds": 100.0}
    trial = Trial(folder=tmp_path, options=options)
    trial.replica.loaded = False
    await started(trial)
    await trial.tick(100)
    assert (trial.release.promoted, state_of(trial)) == ([], "retired")
    assert outcomes(trial) == ["start", "hold"]


async def test_a_restart_goes_on_where_it_was(trial: Trial) -> None:
    trial.canary.start(CANARY)
    trial.restart()
    await trial.tick()
    assert await trial.route() is not None
    users = everybody(60)
    for user in users:
        trial.restart()
        route = await trial.route()
        await trial.answer(user, up=route is None or not route.takes(user))
        trial.replica.counts[STABLE] = (trial.answers, 0)
        await trial.tick()
        if trial.canary.version is None:
            break
    assert len(trial.release.quarantined) == 1
    trial.restart()
    assert trial.canary.version is None


@pytest.mark.parametrize("verdict", ["promote", "roll_back"])
async def test_a_verdict_that_cannot_be_carried_out_is_tried_again_and_taken_once(
    tmp_path: Path, verdict: str
) -> None:
    options = {"deadline_action": verdict, "deadline_seconds": 100.0}
    trial = Trial(folder=tmp_path, options=options)
    await started(trial)
    trial.release.fails = Unavailable("not now")
    await trial.tick(100)
    assert trial.canary.version == CANARY
    # Users of a bad version leave it whatever else cannot be done.
    assert (await trial.route() is None) == (verdict == "roll_back")
    trial.restart()
    trial.bus.go_down()
    await trial.tick()
    trial.bus.come_back()
    trial.release.fails = None
    await trial.tick()
    await trial.tick()
    assert trial.canary.version is None
    assert await trial.route() is None
    assert outcomes(trial) == ["start", verdict]
    assert len(trial.release.promoted) + len(trial.release.quarantined) == 1


async def test_a_promotion_that_is_refused_is_on_record(tmp_path: Path) -> None:
    options = {"deadline_action": "promote", "deadline_seconds": 100.0}
    trial = Trial(folder=tmp_path, options=options)
    await started(trial)
    trial.release.fails = FailedPrecondition("alarm: kl; only a person promotes now")
    await trial.tick(100)
    assert (trial.canary.version, await trial.route()) == (None, None)
    assert (trial.release.promoted, state_of(trial)) == ([], "retired")
    assert outcomes(trial) == ["start", "promote", "stop"]
    assert "alarm: kl" in decisions.of_version(trial.database, "policy", CANARY)[-1].reason


async def promoted_by_somebody(trial: Trial) -> None:
    trial.release.serving = 7


async def quarantined_by_a_guard(trial: Trial) -> None:
    trial.release.set_state(CANARY, "quarantined")


async def stopped(trial: Trial) -> None:
    await trial.canary.stop("learning was paused")


@pytest.mark.parametrize(
    ("event", "state"),
    [
        (promoted_by_somebody, "retired"),
        (quarantined_by_a_guard, "quarantined"),
        (stopped, "retired"),
    ],
)
async def test_what_others_decide_ends_it(trial: Trial, event: Any, state: str) -> None:
    await started(trial)
    await event(trial)
    await trial.tick()
    assert trial.canary.version is None
    assert await trial.route() is None
    assert state_of(trial) == state
    assert outcomes(trial) == ["start", "stop"]
    assert (trial.release.promoted, trial.release.quarantined) == ([], [])
    await stopped(trial)


async def test_a_bus_that_is_away_is_waited_for(trial: Trial) -> None:
    trial.bus.go_down()
    await started(trial)
    trial.bus.come_back()
    await trial.tick()
    assert await trial.route() is not None
