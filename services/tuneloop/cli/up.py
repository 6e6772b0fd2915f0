"""`tuneloop up`: start everything on this machine."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tuneloop.cli.processes import needs
from tuneloop.errors import TuneloopError
from tuneloop.models.catalog import default_policy_model, default_reward_backbone
from tuneloop.policies import WeightsKind


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
    given = {name: value for name, value in options.items() if value is not None}
    with needs("all"):
        start(given)


def start(given: Mapping[str, Any]) -> None:
    """Run the service with the settings that options gave until it is stopped."""
    from tuneloop.settings import load
    from tuneloop.supervisor.settings import SupervisorSettings
    from tuneloop.supervisor.supervisor import run_service
    from tuneloop.telemetry import start_logging

    # Keys, users' texts and weights are for nobody else on this machine.
    os.umask(0o077)
    start_logging("supervisor")
    try:
        run_service(load(SupervisorSettings, **given))
    except TuneloopError as error:
        typer.echo(f"tuneloop: {name_options(error.message, given)}", err=True)
        raise typer.Exit(2) from error


def name_options(message: str, given: Mapping[str, Any]) -> str:
    """Return `message` with the names of settings replaced by the options that set them."""
    for name in given:
        option = f"--{name.replace('_', '-')} "
        message = message.replace(f"TUNELOOP_SUPERVISOR_{name.upper()}=", option)
    return message
