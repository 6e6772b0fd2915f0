"""`tuneloop export`: a version as a plain model folder."""

from pathlib import Path
from typing import Annotated

import typer

from tuneloop.errors import TuneloopError
from tuneloop.learner.commands.options import fail, missing
from tuneloop.models.commands import DEFAULT_CACHE_DIR, CacheDir


def export(
    *,
    weights: Annotated[str, typer.Option(help="Number of a version in --data-dir, or a folder.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    data_dir: Annotated[Path | None, typer.Option(help="Data folder of tuneloop up.")] = None,
    base: Annotated[str | None, typer.Option(help="Model that adapters are put on.")] = None,
    policy: Annotated[str, typer.Option(help="Name of the policy.")] = "tuneloop",
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
) -> None:
    """Merge a version into full weights that any program loads."""
    try:
        from tuneloop.learner.offline.export import export as run
        from tuneloop.learner.offline.versions import Versions

        versions = Versions(data_dir=data_dir, base=base, policy=policy, cache_dir=cache_dir)
        run(versions.find(weights), output)
    except ModuleNotFoundError as error:
        raise fail(missing(error)) from error
    except TuneloopError as error:
        raise fail(error) from error
    typer.echo(output)
