"""Signals get weight by what they predict, not by their name."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.feedback import SIGNAL_KINDS
from tuneloop.learner.guards.signals import (
    LEAST_OF_KIND,
    LEAST_PAIRS,
    Behavior,
    Calibration,
    KindReport,
    calibrate,
)


def answers(
    count: int, ups: int | None, name: str = "", user: str = "", **signals: float
) -> list[Behavior]:
    """So many answers with these signals, the first `ups` of them liked; None: not rated."""
    return [
        Behavior(
            completion_id=f"{name}{sorted(signals)}{ups}-{n}",
            user=user or f"u{n}",
            signals=signals,
            up=None if ups is None else n < ups,
        )
        for n in range(count)
    ]


def report_of(calibration: Calibration, kind: str) -> KindReport:
    return next(report for report in calibration.reports if report.kind == kind)


def test_a_signal_that_foretells_thumbs_is_used() -> None:
    found = calibrate([*answers(40, 36, copied=1.0), *answers(40, 20)])
    assert found.kinds == ("copied",)
    assert found.base == pytest.approx(0.7, abs=0.01)
    chance = found.chance({"copied": 1.0})
    # The data say 0.9, and the prior is a little less sure.
    assert chance is not None
    assert 0.82 < chance < 0.9
    report = report_of(found, "copied")
    assert (report.count, report.rated, report.used) == (40, 40, True)
    assert report.up_with is not None
    assert report.up_without is not None
    assert (report.up_with.value, report.up_without.value) == (0.9, 0.5)
    # By hand: half of the 80 thumbs gain ln(0.9/0.7), …: 0.102 nats a thumb in all, less what
    # estimating it on four fifths costs.
    entropy = {p: -p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.5, 0.7, 0.9)}
    whole = entropy[0.7] - (entropy[0.9] + entropy[0.5]) / 2
    assert report.gain is not None
    assert whole / 2 < report.gain < whole
    assert report.gain_low is not None
    assert 0 < report.gain_low < report.gain


def test_one_that_warns_of_bad_answers_is_as_good() -> None:
    found = calibrate([*answers(40, 4, abandoned=1.0), *answers(40, 20)])
    assert found.kinds == ("abandoned",)
    chance = found.chance({"abandoned": 1.0})
    assert chance is not None
    assert chance < 0.2


def test_one_that_says_nothing_is_not_used() -> None:
    found = calibrate([*answers(40, 20, copied=1.0), *answers(40, 20)])
    assert found.kinds == ()
    assert found.chance({"copied": 1.0}) is None
    report = report_of(found, "copied")
    assert report.gain is not None
    assert report.gain < 0.005
    assert report.reason == "does not foretell thumbs well enough"


def test_one_with_too_few_thumbs_is_not_tried() -> None:
    few, silent = answers(9, 9, copied=1.0), answers(500, None, "silent", copied=1.0)
    found = calibrate([*few, *answers(40, 0), *silent])
    assert found.kinds == ()
    report = report_of(found, "copied")
    assert (report.count, report.rated, report.gain) == (509, 9, None)
    assert report.reason == "9 of 10 thumbs on answers with it"
    always = calibrate([*answers(40, 20, copied=1.0), *answers(9, 0)])
    assert report_of(always, "copied").reason == "9 of 10 thumbs on answers without it"
    early = calibrate([*answers(15, 15, copied=1.0), *answers(LEAST_PAIRS - 16, 0)])
    assert early.kinds == ()
    assert report_of(early, "copied").reason == "29 of 30 thumbs by users who send signals"
    assert report_of(calibrate([]), "edited").reason.startswith("0 of 30 thumbs")


def test_one_user_is_not_enough_to_be_sure_of_others() -> None:
    """Twelve users contradict one who gave more thumbs than all of them."""
    flood = [*answers(200, 200, user="flood", copied=1.0), *answers(200, 0, "f", user="flood")]
    others = [
        behavior
        for n in range(12)
        for behavior in (
            *answers(4, 2, f"{n}", user=f"u{n}", copied=1.0),
            *answers(4, 2, f"{n}", user=f"u{n}"),
        )
    ]
    assert calibrate(flood).kinds == ("copied",)
    assert calibrate([*flood, *others]).kinds == ()


def test_how_much_an_edit_changed_counts() -> None:
    little, much = answers(40, 36, "l", edited=0.1), answers(40, 4, "m", edited=0.9)
    found = calibrate([*little, *much, *answers(40, 20)])
    assert found.kinds == ("edited",)
    chances = [found.chance({"edited": distance}) or 0.0 for distance in (0.1, 0.5, 0.9)]
    assert chances == sorted(chances, reverse=True)
    assert chances[0] > 0.6
    assert chances[2] < 0.4


def test_answers_that_are_seldom_rated_weigh_more() -> None:
    """By hand: 9 of 10 with `copied` are rated, 1 of 10 with `abandoned`; all copied ones are good.

    Of the thumbs 9 in 10 are up, of the answers 1 in 2: the weights are 0.5/0.9 and 0.5/0.1.
    """
    copied = [*answers(90, 90, copied=1.0), *answers(10, None, copied=1.0)]
    abandoned = [*answers(10, 0, abandoned=1.0), *answers(90, None, abandoned=1.0)]
    found = calibrate([*copied, *abandoned])
    # The prior of the propensities keeps the weights a little apart from that.
    assert found.base == pytest.approx(0.5, abs=0.06)


def test_what_a_chance_tells_depends_on_how_common_thumbs_up_are() -> None:
    half, mostly = Calibration(base=0.5), Calibration(base=0.9)
    assert half.says(0.9) == pytest.approx(0.8)
    assert half.says(0.5) == pytest.approx(0.0)
    assert mostly.says(0.9) == pytest.approx(0.0)
    # Odds of 1 are a ninth of the usual ones: q = 0.1.
    assert mostly.says(0.5) == pytest.approx(0.8)


kinds = st.sampled_from([kind.value for kind in SIGNAL_KINDS])
behaviors = st.lists(
    st.builds(
        Behavior,
        completion_id=st.uuids().map(str),
        user=st.sampled_from("abcdefgh"),
        signals=st.dictionaries(kinds, st.floats(0, 1), max_size=3),
        up=st.sampled_from([True, False, None]),
    ),
    max_size=60,
)


@given(behaviors, st.dictionaries(kinds, st.floats(0, 1), max_size=3))
def test_whatever_users_do_chances_are_chances(
    given_behaviors: list[Behavior], signals: dict[str, float]
) -> None:
    found = calibrate(given_behaviors)
    assert {report.kind for report in found.reports} == set(SIGNAL_KINDS)
    assert 0 < found.base < 1
    for report in found.reports:
        assert report.rated <= report.count <= len(given_behaviors)
        assert not (report.used and report.rated < LEAST_OF_KIND)
    chance = found.chance(signals)
    assert (chance is None) == (not set(found.kinds) & set(signals))
    if chance is not None:
        assert 0 < chance < 1
        assert 0 <= found.says(chance) <= 1


@given(behaviors, st.randoms(use_true_random=False))
def test_their_order_does_not_matter(given_behaviors: list[Behavior], random: object) -> None:
    shuffled = list(given_behaviors)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = calibrate(given_behaviors), calibrate(shuffled)
    assert one.kinds == other.kinds
    assert other.coefficients == pytest.approx(one.coefficients, abs=1e-6)


def test_a_judge_of_follow_ups_counts_by_what_its_labels_foretell() -> None:
    """One that is right in nine of ten, one that guesses, and one that says the opposite."""
    kinds = ("satisfied", "complained")
    right = [*answers(40, 36, satisfied=1.0), *answers(40, 4, complained=1.0)]
    found = calibrate([*right, *answers(40, 20)])
    assert set(found.kinds) == set(kinds)
    content, unhappy = (found.chance({kind: 1.0}) for kind in kinds)
    assert content is not None
    assert unhappy is not None
    assert content > 0.8
    assert unhappy < 0.2
    guessed = [*answers(40, 20, satisfied=1.0), *answers(40, 20, complained=1.0)]
    assert calibrate([*guessed, *answers(40, 20)]).kinds == ()
    opposite = [*answers(40, 4, satisfied=1.0), *answers(40, 36, complained=1.0)]
    lies = calibrate([*opposite, *answers(40, 20)])
    content = lies.chance({"satisfied": 1.0})
    assert content is not None
    assert content < 0.2
