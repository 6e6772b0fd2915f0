"""`tuneloop up`: everything on one machine, from settings to the end."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tuneloop.errors import TuneloopError
from tuneloop.models.catalog import default_policy_model, default_reward_backbone
from tuneloop.policies import WeightsKind
from tuneloop.settings import load
from tuneloop.supervisor.settings import SupervisorSettings
from tuneloop.telemetry import start_logging


def run(settings: SupervisorSettings) -> None:
    """Prepare the data folder and the models, then run until stopped. Raises `TuneloopError`."""
    from tuneloop.models.resolve import resolve
    from tuneloop.supervisor.data_dir import check_model, lock, open_data_dir
    from tuneloop.supervisor.output import Terminal
    from tuneloop.supervisor.plan import make_plan, model_name
    from tuneloop.supervisor.supervisor import Supervisor

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


def up(  # noqa: PLR0917 - typer reads the options from here
    model: Annotated[
        str | None,
        typer.Option(
            help="Model to serve: a catalog name, a folder or a hub id.",
            show_default=default_policy_model,
        ),
    ] = None,
    reward_model: Annotated[
        str | None,
        typer.Option(
            help="Backbone of the reward model: as for --model.",
            show_default=default_reward_backbone,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of all data.", show_default=".tuneloop")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address of page and API.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="Port of page and API; the others follow.", show_default="8000"),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="auto, vllm or transformers.", show_default="auto")
    ] = None,
    weights: Annotated[
        WeightsKind | None, typer.Option(help="What learning changes.", show_default="lora")
    ] = None,
    nats_server: Annotated[
        Path | None,
        typer.Option(help="nats-server binary to run.", show_default="the installed one"),
    ] = None,
) -> None:
    """Start the whole service on this machine: page, API, learning.

    Settings of a process go to it through the environment, such as
    TUNELOOP_LEARNER_LEARNING_RATE=1e-4.
    """
    options: dict[str, Any] = {
        "model": model,
        "reward_model": reward_model,
        "data_dir": data_dir,
        "host": host,
        "port": port,
        "engine": engine,
        "weights": weights,
        "nats_server": nats_server,
    }
    start_logging("supervisor")
    given = {name: value for name, value in options.items() if value is not None}
    try:
        run(load(SupervisorSettings, **given))
    except TuneloopError as error:
        typer.echo(f"tuneloop: {in_options(error.message, given)}", err=True)
        raise typer.Exit(2) from error


def in_options(message: str, given: Mapping[str, Any]) -> str:
    """`message` with settings that came from options spelled as those options."""
    for name in given:
        option = f"--{name.replace('_', '-')} "
        message = message.replace(f"TUNELOOP_SUPERVISOR_{name.upper()}=", option)
    return message
