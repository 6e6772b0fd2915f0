"""`tuneloop export`: weights as a plain model folder, or what users said as a file."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from tuneloop.cli.models import DEFAULT_CACHE_DIR, CacheDir
from tuneloop.cli.options import ApiKey, Tags, Url
from tuneloop.errors import SettingsError
from tuneloop.learner.commands.options import exit_on_error
from tuneloop.rollouts import read_tag

Kind = Literal["pairs", "thumbs", "demonstrations", "metrics", "rollouts"]


def export(
    *,
    kind: Annotated[Kind | None, typer.Option(help="What was collected, to export.")] = None,
    form: Annotated[
        Literal["jsonl", "parquet"] | None,
        typer.Option(
            "--format", help="Of the file.", show_default="parquet for FILE.parquet, else jsonl"
        ),
    ] = None,
    policy_version: Annotated[
        int | None, typer.Option(min=0, help="Only answers of this version.")
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(help="Only what was accepted since then (UTC).")
    ] = None,
    tag: Tags = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Instead: a version, by its number in --data-dir or its folder."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="File (or folder) to write.", show_default="standard output"),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Data folder of tuneloop up, to read instead of asking a service."),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    base: Annotated[str | None, typer.Option(help="Model that adapters are put on.")] = None,
    policy: Annotated[str, typer.Option(help="Name of the policy.")] = "tuneloop",
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
) -> None:
    """Write what users said as a file to train on, or a version's weights as a plain model.

    --kind pairs, thumbs, demonstrations, metrics or rollouts writes a file, the first three in the
    columns that TRL's trainers read. --weights merges a version into full weights that any program
    loads.
    """
    with exit_on_error():
        if (kind is None) == (weights is None):
            raise SettingsError("say what to export: --kind or --weights")
        if kind is not None:
            pages = ledger_pages if data_dir is not None else service_pages
            rows = pages(
                kind, policy_version, since, tag or [], data_dir=data_dir, url=url, api_key=api_key
            )
            export_rows(rows, kind, form, output)
            return
        if output is None:
            raise SettingsError("name the folder to write with --output")
        from tuneloop.learner.offline.export import export as run
        from tuneloop.learner.offline.versions import Versions

        versions = Versions(data_dir=data_dir, base=base, policy=policy, cache_dir=cache_dir)
        run(versions.find(str(weights)), output)
    typer.echo(output)


def export_rows(
    rows: Iterable[Sequence[str]], kind: str, form: str | None, output: Path | None
) -> None:
    """Write rows to a file, or to standard output, and print how many there are."""
    from tuneloop.learner.data.data_files import write_rows

    of_name = "parquet" if output and output.suffix == ".parquet" else "jsonl"
    count = write_rows(rows, kind, form or of_name, output)
    typer.echo(f"{count} rows", err=True)


def service_pages(
    kind: str,
    policy_version: int | None,
    since: datetime | None,
    tags: Sequence[str],
    *,
    data_dir: Path | None,
    url: str | None,
    api_key: str | None,
) -> Iterable[Sequence[str]]:
    """Return the rows of a running service."""
    from tuneloop.learner.offline.service_client import RunningService

    moment = None if since is None else since.replace(tzinfo=UTC).isoformat()
    filters = {"policy_version": policy_version, "since": moment, "tag": tags}
    return RunningService(url, api_key).export(kind, filters)


def ledger_pages(
    kind: str,
    policy_version: int | None,
    since: datetime | None,
    tags: Sequence[str],
    *,
    data_dir: Path | None,
    url: str | None,
    api_key: str | None,
) -> Iterable[Sequence[str]]:
    """Return the rows of a ledger on disk, whether its service runs or not."""
    from tuneloop.learner.ledger.reports.export import Wanted, pages
    from tuneloop.learner.offline.sources.ledger_rows import open_ledger

    seconds = None if since is None else since.replace(tzinfo=UTC).timestamp()
    wanted = Wanted(
        kind=kind, policy_version=policy_version, since=seconds, tags=dict(map(read_tag, tags))
    )
    return pages(open_ledger(str(data_dir)), wanted)
