"""What counts as evidence: everybody once, each on the arm the route gave them."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.canary_trial import CANARY, STABLE, served_policy

from tuneloop.learner.ledger.reports.canary_traffic import JudgedAnswer, MeasuredTraffic
from tuneloop.learner.release.canary.comparison import compare, first_of_each, judge, rank
from tuneloop.learner.release.canary.error_rates import ErrorTally
from tuneloop.learner.release.canary.settings import CanarySettings
from tuneloop.policies import CanaryRoute, ServedPolicy, WeightsReference

ROUTE = CanaryRoute(
    weights=WeightsReference(policy="p", policy_version=CANARY, uri="u", manifest_sha256="0"),
    share=0.5,
    salt="s",
)
USERS = [f"u{number}" for number in range(200)]
OF_CANARY = [user for user in USERS if ROUTE.takes(user)]
OF_STABLE = [user for user in USERS if not ROUTE.takes(user)]


def judged(user: str, value: float, *, version: int | None = None, group: str = "") -> JudgedAnswer:
    if version is None:
        version = CANARY if ROUTE.takes(user) else STABLE
    return JudgedAnswer(
        user_hash=user, group_id=group or f"g-{user}", policy_version=version, value=value
    )


def test_a_user_s_first_judgement_counts_and_no_other() -> None:
    user = OF_CANARY[0]
    votes = [judged(user, float(n > 0), group=f"g{n}") for n in range(50)]
    assert first_of_each(ROUTE, votes) == votes[:1]


def test_who_asked_for_the_other_version_does_not_count() -> None:
    votes = [judged(OF_CANARY[0], 1.0, version=STABLE), judged(OF_STABLE[0], 1.0, version=CANARY)]
    assert first_of_each(ROUTE, votes) == []
    both = [*votes, judged(OF_CANARY[0], 0.0)]
    assert first_of_each(ROUTE, both) == both[2:]


def test_users_without_a_name_count_request_by_request() -> None:
    requests = [f"r{number}" for number in range(40)]
    votes = [
        judged("nobody", 1.0, version=CANARY if ROUTE.takes(r) else STABLE, group=r)
        for r in requests
    ]
    assert first_of_each(ROUTE, votes) == votes


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(-1e6, 1e6))
def test_a_rank_is_a_share(scale: list[float], value: float) -> None:
    scale = sorted(scale)
    assert 0 <= rank(value, scale) <= 1
    assert rank(scale[0] - 1, scale) == 0
    assert rank(scale[-1] + 1, scale) == 1


def test_rewards_need_something_to_be_compared_with() -> None:
    rewards = [judged(user, 1.0) for user in (OF_CANARY[0], *OF_STABLE[:10])]
    found = compare(
        ROUTE, thumbs=[], rewards=rewards, earlier_rewards=[], errors=ErrorTally(), alpha=0.05
    )["reward"]
    assert (found.canary, found.stable, found.low, found.high) == (0, 0, -1, 1)
    more = [judged(user, float(n)) for n, user in enumerate(USERS)]
    found = compare(
        ROUTE, thumbs=[], rewards=more, earlier_rewards=[], errors=ErrorTally(), alpha=0.05
    )["reward"]
    # The first of stable's are the scale, and are not counted again.
    assert found.stable == len(OF_STABLE) - 20


def test_nothing_is_decided_on_fewer_than_min_events() -> None:
    votes = [judged(user, float(user in OF_STABLE)) for user in USERS]
    figures = compare(
        ROUTE, thumbs=votes, rewards=[], earlier_rewards=[], errors=ErrorTally(), alpha=0.05
    )
    enough = CanarySettings(min_events=min(len(OF_CANARY), len(OF_STABLE)))
    verdict = judge(figures, enough, {})
    assert verdict is not None
    assert verdict.outcome == "roll_back"
    more = CanarySettings(min_events=enough.min_events + 1)
    assert judge(figures, more, {}) is None


def test_a_canary_better_by_reward_alone_is_not_promoted_where_thumbs_decide() -> None:
    rewards = [judged(user, float(user in OF_CANARY)) for user in USERS]
    figures = compare(
        ROUTE,
        thumbs=[],
        rewards=rewards,
        earlier_rewards=[0.0] * 30,
        errors=ErrorTally(),
        alpha=0.05,
    )
    assert judge(figures, CanarySettings(min_events=5), {}) is None
    verdict = judge(figures, CanarySettings(min_events=5, decide_by="reward"), {})
    assert verdict is not None
    assert verdict.outcome == "promote"


def counters(process: str, **arms: tuple[int, int]) -> ServedPolicy:
    versions = {"canary": CANARY, "stable": STABLE}
    counts = {versions[arm]: ended for arm, ended in arms.items()} | {99: (1, 1)}
    return served_policy(process, counts)


def test_counters_count_from_where_they_were_first_seen() -> None:
    tally = ErrorTally()

    def note(policy: ServedPolicy) -> bool:
        return tally.add_counts(policy, canary=CANARY, stable=STABLE)

    assert not note(counters("a", stable=(100, 50)))
    assert not note(counters("b", stable=(10, 0), canary=(5, 5)))
    assert note(counters("a", stable=(109, 50), canary=(1, 0)))
    assert note(counters("b", stable=(19, 1), canary=(5, 6)))
    assert not note(counters("b", stable=(19, 1), canary=(5, 6)))
    assert tally.total == {"canary": [2, 1], "stable": [19, 1]}
    assert tally.blocks == [0.0, 0.1 - 1.0]


def test_blocks_of_errors_stay_few() -> None:
    tally = ErrorTally()
    for number in range(20_000):
        tally.add_counts(
            counters("a", stable=(9 * number, 0), canary=(number, 0)),
            canary=CANARY,
            stable=STABLE,
        )
    assert len(tally.blocks) < 1500


def test_with_a_metric_each_figure_is_tested_at_a_quarter_of_alpha() -> None:
    votes = [judged(user, float(user in OF_STABLE)) for user in USERS[:40]]
    rest: dict[str, Any] = {"rewards": [], "earlier_rewards": [], "errors": ErrorTally()}
    three = compare(ROUTE, thumbs=votes, alpha=0.06, **rest)
    metric = MeasuredTraffic(answers=[], earlier=[], is_boolean=True)
    four = compare(ROUTE, thumbs=votes, alpha=0.08, metric=metric, **rest)
    assert three["thumbs"].high == four["thumbs"].high
    assert (set(three), set(four) - set(three)) == ({"thumbs", "reward", "errors"}, {"metric"})
    assert (four["metric"].canary_mean, four["metric"].low, four["metric"].high) == (None, -1, 1)


def test_a_canary_is_not_decided_by_a_metric_without_a_name() -> None:
    with pytest.raises(ValidationError, match="needs the name of a metric"):
        CanarySettings(decide_by="metric")
    with pytest.raises(ValidationError, match="no name of a metric"):
        CanarySettings(metric="task solved")
