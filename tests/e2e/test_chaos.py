"""A short run of what `make chaos` does."""

from pathlib import Path

import pytest
from chaos.run import Options, run

SECONDS = 150


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_nothing_is_lost_in_chaos(
    tmp_path: Path, tiny_policy: Path, tiny_reward_model: Path
) -> None:
    options = Options(
        folder=tmp_path / "disk",
        policy=tiny_policy,
        reward_model=tiny_reward_model,
        seconds=SECONDS,
        seed=1,
    )
    outcome = await run(options)
    print("\n".join(outcome.lines()))
    assert outcome.audit.problems == []
    # It was chaos, and there was something to lose.
    assert len(outcome.faults) >= 3
    assert outcome.disorder.total() >= 10
    assert outcome.audit.counts["thumbs trained"] >= 10
    assert outcome.audit.counts["policy: versions"] >= 1
