"""`tuneloop keys`: create, list and revoke the keys of a gateway on this machine; show costs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneloop import audit
from tuneloop.api.learner import UsageReport, UsedTokens
from tuneloop.cli.options import ApiKey as ApiKeyOption
from tuneloop.cli.options import Url, connected, fail
from tuneloop.cli.output import print_json, print_table
from tuneloop.cli.processes import needs
from tuneloop.errors import TuneloopError
from tuneloop.gateway.keys.scopes import Scope

if TYPE_CHECKING:
    from tuneloop.gateway.keys.store import ApiKey, KeyFile

keys_app = typer.Typer(
    no_args_is_help=True,
    help="Create, list and revoke API keys, whether the service runs or not; "
    "a running gateway notices within seconds. Show what each costs.",
)

DataDir = Annotated[
    Path,
    typer.Option(envvar="TUNELOOP_SUPERVISOR_DATA_DIR", help="Data folder of `tuneloop up`."),
]
File = Annotated[
    Path | None,
    typer.Option(
        envvar="TUNELOOP_GATEWAY_KEYS_FILE",
        help="The keys file, instead.",
        show_default="keys/api_keys.json in the data folder",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_DATA_DIR = Path(".tuneloop")


@keys_app.command()
def create(
    name: Annotated[str, typer.Option(help="What to call it: letters, digits, . _ @ -")],
    *,
    scope: Annotated[
        list[Scope] | None,
        typer.Option(
            help="What it may do: infer, feedback, or admin for everything. "
            "Repeat it for more than one.",
            show_default="infer and feedback",
        ),
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Limit.")] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Limit, of prompts and completions together.")
    ] = None,
    requests_per_day: Annotated[int | None, typer.Option(min=1, help="Quota, by UTC days.")] = None,
    tokens_per_day: Annotated[int | None, typer.Option(min=1, help="Quota, by UTC days.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it. It is shown only now; the file stores its hash."""
    store = key_file(data_dir, file)
    from tuneloop.gateway.keys.store import Limits, new_key

    limits = Limits(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        requests_per_day=requests_per_day,
        tokens_per_day=tokens_per_day,
    )
    try:
        secret, key = new_key(name, scope or [Scope.INFER, Scope.FEEDBACK], limits)
        store.add(key)
        record(data_dir, file, "keys create", key)
    except TuneloopError as error:
        fail(error.message)
    except OSError as error:
        fail(f"keys file {store.path}: {error.strerror}")
    if as_json:
        typer.echo(json.dumps({"key": secret, **document(key)}))
        return
    typer.echo(secret)
    allowed = " and ".join(sorted(key.scopes))
    typer.secho(
        f"{key.name} ({key.id}) may: {allowed}. Save the key now: it cannot be shown again.\n"
        "Commands and examples read it from TUNELOOP_API_KEY; clients send it as "
        "'Authorization: Bearer …'.",
        err=True,
        dim=True,
    )


@keys_app.command("list")
def list_keys(
    *,
    everything: Annotated[bool, typer.Option("--all", help="Include revoked keys.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """List the keys, without their secrets."""
    try:
        keys = [k for k in key_file(data_dir, file).read() if everything or k.is_active]
    except TuneloopError as error:
        fail(error.message)
    if as_json:
        typer.echo(json.dumps([document(key) for key in keys], indent=2))
        return
    form = "{:18} {:20} {:8} {:22} {:20} {}"
    typer.echo(form.format("ID", "NAME", "KEY", "SCOPES", "CREATED", "LIMITS").rstrip())
    for key in keys:
        created = key.created_time.isoformat()[:19]
        limits = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in limits_of(key).items())
        if key.revoked_time is not None:
            limits = f"revoked {key.revoked_time.isoformat()[:19]}"
        scopes = ", ".join(sorted(key.scopes))
        line = form.format(key.id, key.name, f"…{key.ends_with}", scopes, created, limits)
        typer.echo(line.rstrip())


@keys_app.command()
def revoke(
    key: Annotated[str, typer.Argument(help="Id or name of the key.")],
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Revoke a key. This cannot be undone; answers that are streaming are completed."""
    store = key_file(data_dir, file)
    try:
        revoked = store.revoke(key)
        record(data_dir, file, "keys revoke", revoked)
    except TuneloopError as error:
        fail(error.message)
    except OSError as error:
        fail(f"keys file {store.path}: {error.strerror}")
    typer.echo(json.dumps(document(revoked)) if as_json else f"revoked {revoked.name}")


@keys_app.command(epilog="Example: tuneloop keys usage --days 7")
def usage(
    *,
    days: Annotated[int, typer.Option(min=1, max=31, help="Days (UTC), today included.")] = 31,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Show the tokens and costs of each key and version, from a running service."""
    with connected(url, api_key) as client:
        answer: UsageReport = client.request("GET", f"/v1/usage?days={days}")
    if as_json:
        print_json(answer)
        return
    if not answer["prices"]:
        typer.echo("no prices are set (TUNELOOP_GATEWAY_PRICES): costs are not counted", err=True)
    print_table(("KEY", "POLICY", "VERSION", "INPUT", "OUTPUT", "COST"), usage_rows(answer["data"]))


def usage_rows(used: Sequence[UsedTokens]) -> Iterator[tuple[Any, ...]]:
    """Yield the sums of all days by key, policy and version, and those of everything."""
    sums: dict[tuple[Any, ...], list[float]] = {}
    total = ("all", "", "")
    for row in used:
        for place in ((row["key"], row["policy"], row["policy_version"]), total):
            before = sums.get(place, [0, 0, 0.0])
            added = (row["input_tokens"], row["output_tokens"], row["cost"])
            sums[place] = [one + other for one, other in zip(before, added, strict=True)]
    for place in (*sorted(sums.keys() - {total}), *(sums.keys() & {total})):
        prompts, completions, cost = sums[place]
        yield (*place, prompts, completions, f"{cost:.4f}")


def key_file(data_dir: Path, file: Path | None) -> "KeyFile":
    """Return the keys file that the options name."""
    with needs("serve"):
        from tuneloop.gateway.keys.store import FILE_NAME, KeyFile

    return KeyFile(file or data_dir / "keys" / FILE_NAME)


def record(data_dir: Path, file: Path | None, action: str, key: "ApiKey") -> None:
    """Record a change in the audit log of commands. Raises `SettingsError`."""
    about = {"key": key.id, "name": key.name, "scopes": " ".join(sorted(key.scopes))}
    audit.record_command(file.parent if file else data_dir / "logs", action, about, "ok")


def document(key: "ApiKey") -> dict[str, Any]:
    """Return a key as JSON."""
    return {
        "id": key.id,
        "name": key.name,
        "ends_with": key.ends_with,
        "scopes": sorted(key.scopes),
        "limits": limits_of(key),
        "created_time": key.created_time.isoformat(),
        "revoked_time": None if key.revoked_time is None else key.revoked_time.isoformat(),
    }


def limits_of(key: "ApiKey") -> dict[str, int]:
    """Return the limits that are set, by name."""
    return {name: value for name, value in asdict(key.limits).items() if value is not None}
