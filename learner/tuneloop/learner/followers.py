"""What the other ranks of a group that trains one policy do: as the first one tells them.

They keep no ledger and decide nothing. Rank 0 announces each call of its trainer or its model, with
the arguments, and the followers make the same call on their part of the weights.
"""

import signal

from tuneloop.errors import TuneloopError
from tuneloop.learner.models.world import END, Announcement, World, logger
from tuneloop.learner.trainer.policy import PolicyTrainer


def follow(world: World) -> None:
    """Repeat what the leader announces until it ends, then leave the group."""
    # A signal to all processes is for the leader, which finishes its step and ends the others.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    trainer: PolicyTrainer | None = None
    while (announced := _received(world))[0] != END:
        target, method, arguments, named = announced
        try:
            with world.together():
                if target == "make":
                    folder, settings = arguments
                    trainer = PolicyTrainer(folder, settings, world, **named)
                else:
                    assert trainer is not None
                    called = trainer if target == "trainer" else trainer.model
                    getattr(called, method)(*arguments, **named)
        except TuneloopError:
            continue  # the leader gets the same error, and reports it
    world.close()


def _received(world: World) -> Announcement:
    """Return the next announcement; end the process if rank 0 is gone."""
    try:
        return world.receive()
    except RuntimeError as error:
        logger.error("rank 0 is gone; rank %d ends", world.rank)
        raise SystemExit(1) from error
