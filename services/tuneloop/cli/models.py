"""`tuneloop models`: download models ahead of time, and list them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from tuneloop.cli.processes import needs
from tuneloop.errors import TuneloopError
from tuneloop.models.catalog import catalog, default_policy_model, default_reward_backbone

models_app = typer.Typer(no_args_is_help=True, help="Download and list models.")

CacheDir = Annotated[
    Path,
    typer.Option(envvar="TUNELOOP_CACHE_DIR", help="Folder for the models of the catalog."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
DEFAULT_CACHE_DIR = Path("~/.cache/tuneloop")


@models_app.command(epilog="Example: tuneloop models pull smollm2-135m-instruct")
def pull(
    references: Annotated[
        list[str] | None,
        typer.Argument(help="Names, folders or hub ids; by default the two default models."),
    ] = None,
    *,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
    as_json: AsJson = False,
) -> None:
    """Download models, so that starting needs no network; prints their folders."""
    folders: dict[str, str] = {}
    for reference in references or [default_policy_model, default_reward_backbone]:
        try:
            with needs("generation"):
                from tuneloop.models.resolve import resolve

                folders[reference] = str(resolve(reference, cache_dir.expanduser()))
        except TuneloopError as error:
            typer.echo(error.message, err=True)
            raise typer.Exit(1) from error
        if not as_json:
            typer.echo(folders[reference])
    if as_json:
        typer.echo(json.dumps(folders, indent=2))


@models_app.command("list", epilog="Example: tuneloop models list --json")
def list_models(*, cache_dir: CacheDir = DEFAULT_CACHE_DIR, as_json: AsJson = False) -> None:
    """List the models of the catalog, and which of them are downloaded."""
    from tuneloop.models.carried import is_built

    if as_json:
        rows = [
            {
                "name": model.name,
                "here": is_built(model, cache_dir.expanduser()),
                "bytes": model.wheel_bytes,
                "description": model.description,
                "license": model.license,
            }
            for model in catalog.values()
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    for model in catalog.values():
        state = "here" if is_built(model, cache_dir.expanduser()) else "not fetched"
        size = f"{model.wheel_bytes / 1e6:.0f} MB"
        typer.echo(f"{model.name:24} {state:12} {size:>7}  {model.description} ({model.license})")
