"""Short runs of what `make chaos` does."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from chaos.run import FAULTS, Options, run

FROM_WITHOUT = ("power lost", "two cut off from nats", "clocks stepped", "rollouts lost")
"""What neither a process nor its disk does by itself; not all of it is allowed everywhere."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("faults", "seconds", "least"), [(tuple(FAULTS), 150, 3), (FROM_WITHOUT, 60, 1)]
)
async def test_nothing_is_lost_in_chaos(
    tmp_path: Path,
    tiny_policy: Path,
    tiny_reward_model: Path,
    faults: Sequence[str],
    seconds: float,
    least: int,
) -> None:
    options = Options(
        folder=tmp_path / "disk",
        policy=tiny_policy,
        reward_model=tiny_reward_model,
        seconds=seconds,
        seed=1,
        faults=faults,
    )
    outcome = await run(options)
    print("\n".join(outcome.lines()))
    assert outcome.audit.problems == []
    # It was chaos, and there was something to lose.
    assert len(outcome.faults) >= least
    assert outcome.disorder.total() >= 10
    assert outcome.audit.counts["thumbs trained"] >= 10
    assert outcome.audit.counts["policy: versions"] >= 1
