"""`tuneloop policies`: versions, what made them, and which one serves."""

import json
from typing import Annotated

import typer

from tuneloop.commands.client import DEFAULT_URL, ApiKey, Client, Url

policies_app = typer.Typer(no_args_is_help=True, help="List, show, promote and roll back versions.")

Version = Annotated[int, typer.Argument(min=0, help="Number of the version.")]
LIMIT = typer.Option(min=1, max=100, help="How many.")


@policies_app.command("list")
def list_versions(
    limit: Annotated[int, LIMIT] = 20, url: Url = DEFAULT_URL, api_key: ApiKey = None
) -> None:
    """The newest versions; a star marks the one that serves."""
    answer = Client(url, api_key).call("GET", f"/v1/policies?limit={limit}")
    if answer["data"] is None:
        typer.echo("the learner is away: its list of versions cannot be had now", err=True)
    form = "{:1} {:>7}  {:>6}  {:12} {:20} {}"
    typer.echo(form.format("", "VERSION", "PARENT", "STATE", "CREATED", "LEARNED FROM"))
    serving = answer["policy_version"]
    for row in answer["data"] or []:
        samples = ", ".join(f"{count} {name}" for name, count in row["samples"].items())
        typer.echo(
            form.format(
                "*" if row["policy_version"] == serving else "",
                row["policy_version"],
                row["parent_version"],
                row["state"],
                (row["created_time"] or "")[:19],
                samples,
            ).rstrip()
        )
    if any(row["policy_version"] == 0 for row in answer["data"] or []):
        return
    star = "*" if serving == 0 else ""
    typer.echo(form.format(star, 0, "", "base model", "", "").rstrip())


@policies_app.command()
def show(version: Version, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """A version's manifest and lineage, as JSON."""
    answer = Client(url, api_key).call("GET", f"/v1/policies/{version}")
    typer.echo(json.dumps(answer, indent=2))


@policies_app.command()
def promote(version: Version, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Make a published version the one that serves."""
    answer = Client(url, api_key).call("POST", f"/v1/policies/{version}/promote")
    typer.echo(f"stable: version {answer['policy_version']}")


@policies_app.command()
def rollback(
    version: Annotated[
        int | None, typer.Argument(min=0, help="Where to; by default the stable one's parent.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Go back to an earlier version."""
    body = {} if version is None else {"policy_version": version}
    answer = Client(url, api_key).call("POST", "/v1/policies/rollback", body)
    typer.echo(f"stable: version {answer['policy_version']}")
