"""Chaos: everything is killed, frozen, cut off and fed twice, and nothing may be lost.

    make chaos [ARGS="--seconds 600 --seed 0"]

Real processes under `tuneloop up` with tiny models, users who chat and press thumbs throughout,
and faults one after the other: `kill -9` of any process, SIGSTOP past ack_wait, restarts of NATS,
a full disk, a power cut that takes what was not synced, networks that fall silent, clocks that are
set, the routing table, streams and a consumer deleted, a second learner, damaged files, events
delivered twice and in another order. What a machine does not allow is left out, and named: a full
disk needs the right to mount, a power cut the right to mount ext4 from a file, clocks a C compiler.
In the end an audit of ledger, versions and answers, whose counts are printed; the exit status is 1
when anything is wrong, and the data (logs too) is kept then.
"""

import argparse
import asyncio
import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path

from chaos.run import FAULTS, Options, run
from support.tiny_models import make_policy, make_reward_model


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="how long faults begin")
    parser.add_argument("--seed", type=int, default=None, help="of users and faults")
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="only these")
    parser.add_argument("--keep", type=Path, help="new folder for a copy of the data")
    arguments = parser.parse_args()
    # Leave nothing running behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        options = Options(
            folder=folder / "disk",
            policy=make_policy(folder / "policy"),
            reward_model=make_reward_model(folder / "reward"),
            seconds=arguments.seconds,
            seed=seed,
            users=arguments.users,
            faults=arguments.fault or tuple(FAULTS),
            keep=arguments.keep,
            keep_failed=Path(tempfile.gettempdir(), f"tuneloop-chaos-{int(time.time())}"),
        )
        outcome = asyncio.run(run(options))
    print("\n".join(outcome.lines()))
    return 1 if outcome.audit.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
