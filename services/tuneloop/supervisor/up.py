"""Runs everything on one machine, for `tuneloop up`."""

import asyncio
import os

from tuneloop.models.resolve import resolve
from tuneloop.supervisor.data_dir import check_model, lock, open_data_dir
from tuneloop.supervisor.output import Terminal
from tuneloop.supervisor.plan import make_plan, model_name
from tuneloop.supervisor.settings import SupervisorSettings
from tuneloop.supervisor.supervisor import Supervisor


def run(settings: SupervisorSettings) -> None:
    """Prepare the data folder and the models, then run until stopped. Raises `TuneloopError`."""
    descriptor = lock(settings.data_dir)
    data = open_data_dir(settings.data_dir)
    cache_dir = settings.cache_dir.expanduser()
    model = resolve(settings.model, cache_dir)
    reward_model = resolve(settings.reward_model, cache_dir)
    plan = make_plan(settings, data, model=model, reward_model=reward_model, environment=os.environ)
    name = model_name(settings.model)
    check_model(data, folder=model, name=name, weights=settings.weights)
    terminal = Terminal()
    terminal.line("tuneloop", f"starting {name} for {plan.url}; logs are in {data.logs}")

    async def supervise() -> None:
        supervisor = Supervisor(
            plan,
            data,
            terminal=terminal,
            lock_descriptor=descriptor,
            stop_seconds=settings.stop_seconds,
        )
        await supervisor.run()

    asyncio.run(supervise())
