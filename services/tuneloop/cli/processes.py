"""The processes of a service, each by itself: commands of `tuneloop`, and programs of their own.

Only the standard library is imported before the process is: `tuneloop-gateway` and its like start
here, and say what to install where their packages are missing.
"""

from tuneloop.cli.extras import needs


def gateway() -> None:
    """Run the HTTP edge alone; settings: TUNELOOP_GATEWAY_…."""
    with needs("serve"):
        from tuneloop.gateway.main import main

        main()


def generation() -> None:
    """Run the generation service alone; settings: TUNELOOP_GENERATION_…."""
    with needs("generation"):
        from tuneloop.generation.main import main

        main()


def reward() -> None:
    """Run the reward service alone; settings: TUNELOOP_REWARD_…."""
    with needs("reward"):
        from tuneloop.reward.main import main

        main()


def learner() -> None:
    """Run the learner alone; settings: TUNELOOP_LEARNER_…."""
    with needs("learner"):
        from tuneloop.learner.main import main

        main()
