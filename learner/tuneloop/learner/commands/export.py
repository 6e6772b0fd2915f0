"""`tuneloop export`: weights as a plain model folder, or what users said as a file."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from tuneloop.cli.models import DEFAULT_CACHE_DIR, CacheDir
from tuneloop.cli.options import ApiKey, Tags, Url
from tuneloop.errors import SettingsError
from tuneloop.learner.commands.options import exit_on_error
from tuneloop.rollouts import read_tag

if TYPE_CHECKING:
    from tuneloop.learner.offline.gguf_model import GgufType
    from tuneloop.learner.offline.model_card import WeightsForm
    from tuneloop.learner.offline.versions import Versions

Kind = Literal["pairs", "thumbs", "demonstrations", "metrics", "rollouts"]
Form = Literal["jsonl", "parquet", "merged", "adapter", "gguf"]
Dtype = Annotated[
    Literal["f32", "f16", "bf16", "q8_0"] | None,
    typer.Option(help="What a GGUF's matrices are stored in.", show_default="f16"),
]


def export(
    *,
    kind: Annotated[Kind | None, typer.Option(help="What was collected, to export.")] = None,
    form: Annotated[
        Form | None,
        typer.Option(
            "--format",
            help="jsonl or parquet of what was collected; merged, adapter or gguf of --weights.",
            show_default="parquet for FILE.parquet, else jsonl; of --weights merged",
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
    dtype: Dtype = None,
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
    """Write what users said as a file to train on, or a version's weights with a model card.

    --kind pairs, thumbs, demonstrations, metrics or rollouts writes a file, the first three in the
    columns that TRL's trainers read. --weights writes a folder: with --format merged the full
    weights, which any program loads; with adapter the LoRA adapter for peft; with gguf one file for
    llama.cpp and Ollama.
    """
    with exit_on_error():
        check_options(kind, weights, form, dtype)
        if kind is not None:
            pages = ledger_pages if data_dir is not None else service_pages
            rows = pages(
                kind, policy_version, since, tag or [], data_dir=data_dir, url=url, api_key=api_key
            )
            export_rows(rows, kind, form, output)
            return
        from tuneloop.learner.offline.versions import Versions

        versions = Versions(data_dir=data_dir, base=base, policy=policy, cache_dir=cache_dir)
        export_weights(versions, str(weights), form, dtype, output)
    typer.echo(output)


def export_weights(
    versions: "Versions", reference: str, form: str | None, dtype: str | None, output: Path | None
) -> None:
    """Write a version to a folder."""
    from tuneloop.learner.offline.export import export as run

    if output is None:
        raise SettingsError("name the folder to write with --output")
    of_weights = cast("WeightsForm", form or "merged")
    run(versions.find(reference), output, form=of_weights, kind=cast("GgufType", dtype or "f16"))


def check_options(
    kind: str | None, weights: str | None, form: str | None, dtype: str | None
) -> None:
    """Raise `SettingsError` for options that are missing or do not go together."""
    if (kind is None) == (weights is None):
        raise SettingsError("say what to export: --kind or --weights")
    of_weights = form in ("merged", "adapter", "gguf")
    if kind is not None and of_weights:
        raise SettingsError(f"--format {form} is of --weights; of --kind give jsonl or parquet")
    if weights is not None and form is not None and not of_weights:
        raise SettingsError(
            f"--format {form} is of --kind; of --weights give merged, adapter or gguf"
        )
    if dtype is not None and form != "gguf":
        raise SettingsError("--dtype is of --format gguf; other forms keep the type of the base")


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
