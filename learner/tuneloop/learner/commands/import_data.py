"""`tuneloop import`: judgements there already are, to begin with."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tuneloop.cli.models import DEFAULT_CACHE_DIR, CacheDir
from tuneloop.cli.options import ApiKey, Url
from tuneloop.learner.commands.options import exit_on_error


def import_data(
    file: Annotated[str, typer.Argument(help="File (.jsonl, .json, .parquet, .csv) or dataset.")],
    *,
    kind: Annotated[
        Literal["pairs", "thumbs", "demonstrations", "metrics"],
        typer.Option(help="What its rows are."),
    ],
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Data folder of tuneloop up while it is stopped."),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    base: Annotated[
        str | None, typer.Option(help="Model of --data-dir, where it is not the one it names.")
    ] = None,
    policy: Annotated[str, typer.Option(help="Name of the policy.")] = "tuneloop",
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
) -> None:
    """Add existing preference data to what a service learns from; a row is added once.

    Columns: prompt, chosen, rejected (pairs); prompt, completion, label (thumbs); prompt,
    completion (demonstrations); prompt, completion, name, value (metrics); texts or conversations.
    """
    with exit_on_error():
        from tuneloop.learner.data.table import open_table
        from tuneloop.learner.offline.import_file import seed, stopped_ledger
        from tuneloop.learner.offline.service_client import RunningService
        from tuneloop.learner.offline.versions import Versions

        table = open_table(file)
        if data_dir is None:
            done = seed(table, kind, RunningService(url, api_key).add)
        else:
            versions = Versions(data_dir=data_dir, base=base, policy=policy, cache_dir=cache_dir)
            with stopped_ledger(data_dir, versions) as add:
                done = seed(table, kind, add)
    typer.echo(f"{done.added} rows added, {done.known} known before")
