"""`tuneloop models`: fetch models ahead of time, and say which there are."""

from pathlib import Path
from typing import Annotated

import typer

from tuneloop.errors import TuneloopError
from tuneloop.models.carried import is_built
from tuneloop.models.catalog import catalog, default_policy_model, default_reward_backbone
from tuneloop.models.resolve import resolve

models_app = typer.Typer(no_args_is_help=True, help="Fetch and list models.")

CacheDir = Annotated[
    Path,
    typer.Option(envvar="TUNELOOP_CACHE_DIR", help="Where models of the catalog are kept."),
]
DEFAULT_CACHE_DIR = Path("~/.cache/tuneloop")


@models_app.command()
def pull(
    references: Annotated[
        list[str] | None,
        typer.Argument(help="Names, folders or hub ids; by default the two default models."),
    ] = None,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
) -> None:
    """Fetch models, so that nothing is downloaded at start; prints their folders."""
    for reference in references or [default_policy_model, default_reward_backbone]:
        try:
            typer.echo(resolve(reference, cache_dir.expanduser()))
        except TuneloopError as error:
            typer.echo(error.message, err=True)
            raise typer.Exit(1) from error


@models_app.command("list")
def list_models(cache_dir: CacheDir = DEFAULT_CACHE_DIR) -> None:
    """Print the catalog and which of its models are here."""
    for model in catalog.values():
        state = "here" if is_built(model, cache_dir.expanduser()) else "not fetched"
        size = f"{model.wheel_bytes / 1e6:.0f} MB"
        typer.echo(f"{model.name:24} {state:12} {size:>7}  {model.description} ({model.license})")
