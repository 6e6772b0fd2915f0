"""`tuneloop policies`: the versions, their origin, and which one serves."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from tuneloop.api.learner import LearnerState
from tuneloop.api.policies import (
    MetricFigures,
    PolicyList,
    PolicyVersion,
    PolicyVersionDetails,
    Rebuilt,
    Traffic,
)
from tuneloop.cli.options import ApiKey, AsJson, Url, connected, fail
from tuneloop.cli.output import cell, print_fields, print_json, print_table

policies_app = typer.Typer(
    no_args_is_help=True,
    help="List, show, promote and roll back versions; pause and resume learning.",
)

Version = Annotated[int, typer.Argument(min=0, help="Number of the version.")]
LOSSES = 10
"""Items of a suite that are shown; `--json` has all."""
LIMIT = typer.Option(min=1, max=100, help="How many.")


@policies_app.command("list", epilog="Example: tuneloop policies list --limit 5")
def list_versions(
    *,
    limit: Annotated[int, LIMIT] = 20,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List the newest versions; a star marks the one that serves."""
    with connected(url, api_key) as client:
        answer: PolicyList = client.request("GET", f"/v1/policies?limit={limit}")
    if as_json:
        print_json(answer)
        return
    if answer["data"] is None:
        typer.echo("the learner does not answer, so its versions are not listed", err=True)
    serving = answer["policy_version"]
    rows = [version_row(version, serving) for version in answer["data"] or []]
    if all(version["policy_version"] != 0 for version in answer["data"] or []):
        rows.append(("*" if serving == 0 else "", 0, None, "base model", "", "", None, ""))
    columns = ("", "VERSION", "PARENT", "STATE", "CREATED", "THUMBS UP", "REWARD", "LEARNED FROM")
    print_table(columns, rows)


@policies_app.command(epilog="Example: tuneloop policies show 3 --json")
def show(
    version: Version, *, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None
) -> None:
    """Show a version: its manifest, its decisions, and the feedback it learned from."""
    with connected(url, api_key) as client:
        answer: PolicyVersionDetails = client.request("GET", f"/v1/policies/{version}")
    if as_json:
        print_json(answer)
        return
    print_table(("", ""), fact_rows(answer))
    print_table(("MANIFEST", ""), flatten(answer.get("manifest") or {}))
    print_table(("DECIDED", "BY", "WHAT", "OUTCOME", "REASON"), decision_rows(answer))
    for decision in answer["decisions"]:
        if numbers := decision.get("numbers"):
            items = numbers.get("items") or {}
            figures = {name: value for name, value in numbers.items() if name != "items"}
            print_table((f"{decision['kind']} {decision['outcome']}".upper(), ""), flatten(figures))
            for suite, columns in items.items():
                print_items(suite, columns)
    print_table(("SAMPLE", "OBJECTIVE", "STEP", "EPOCH", "COMPLETIONS"), use_rows(answer))


@policies_app.command(epilog="Example: tuneloop policies promote 4")
def promote(
    version: Version, *, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None
) -> None:
    """Make a published version the one that serves."""
    with connected(url, api_key) as client:
        print_stable(client.promote(version), as_json)


@policies_app.command(epilog="Example: tuneloop policies rollback 2")
def rollback(
    version: Annotated[
        int | None, typer.Argument(min=0, help="The version; by default the last good one.")
    ] = None,
    *,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Roll back to an earlier version; those after it are quarantined."""
    with connected(url, api_key) as client:
        print_stable(client.roll_back(version), as_json)


@policies_app.command(epilog="Example: tuneloop policies pause")
def pause(*, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """Pause learning until it is resumed; the service keeps answering, and feedback is kept."""
    control_learner("pause", as_json, url, api_key)


@policies_app.command(epilog="Example: tuneloop policies resume")
def resume(*, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """Resume learning."""
    control_learner("resume", as_json, url, api_key)


def control_learner(action: str, as_json: bool, url: str | None, api_key: str | None) -> None:
    """Pause or resume the learner, and print its state."""
    with connected(url, api_key) as client:
        answer: LearnerState = client.request("POST", f"/v1/learner/{action}")
    if as_json:
        print_json(answer)
    else:
        typer.echo(f"the learner: {answer['state']}")


@policies_app.command(epilog="Example: tuneloop policies rebuild --before-user ann --yes")
def rebuild(
    version: Annotated[
        int | None, typer.Argument(min=0, help="The version to train again from.")
    ] = None,
    *,
    before_user: Annotated[
        str | None,
        typer.Option(help="Instead: the last version that had not learned from this user."),
    ] = None,
    before_key: Annotated[
        str | None,
        typer.Option(help="Instead: retract all feedback of this API key, and go to before it."),
    ] = None,
    before_tenant: Annotated[str | None, typer.Option(help="The same for a tenant.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Roll back to an earlier version and train again from there, on the remaining feedback.

    The versions after it are quarantined and stop serving. If its checkpoint is gone, training
    starts at the base model, which the output says. Of a key or a tenant all feedback is retracted
    first, so it is not used again: revoke the key before, so that no more comes.
    """
    body = {
        "policy_version": version,
        "before_user": before_user,
        "before_key": before_key,
        "before_tenant": before_tenant,
    }
    given = {name: value for name, value in body.items() if value is not None}
    if len(given) != 1:
        fail(
            "say from where to train again: a VERSION, --before-user, --before-key or "
            "--before-tenant"
        )
    if not yes:
        [(name, value)] = given.items()
        start = f"{name.replace('_', ' ').replace('policy ', '')} {value}"
        typer.confirm(f"Leave every version after that ({start})?", abort=True, err=True)
    with connected(url, api_key) as client:
        answer: Rebuilt = client.request("POST", "/v1/policies/rebuild", body)
    (print_json if as_json else print_fields)(answer)


def print_stable(version: int, as_json: bool) -> None:
    """Print which version is stable now."""
    if as_json:
        print_json({"policy_version": version})
    else:
        typer.echo(f"stable: version {version}")


def version_row(version: PolicyVersion, serving: int | None) -> tuple[Any, ...]:
    """Return a line of the list."""
    number, traffic = version["policy_version"], version["traffic"]
    return (
        "*" if number == serving else "",
        number,
        version["parent_version"],
        version["state"],
        (version["created_time"] or "")[:19],
        thumbs(traffic),
        None if traffic is None else traffic["mean_reward"],
        counts(version["samples"]),
    )


def thumbs(traffic: Traffic | None) -> str:
    """Return the rate of thumbs up with its interval."""
    if traffic is None or traffic["thumbs_rate"] is None:
        return ""
    return (
        f"{traffic['thumbs_rate']:.2f} "
        f"({traffic['thumbs_low']:.2f} to {traffic['thumbs_high']:.2f})"
    )


def measured(figures: MetricFigures) -> str:
    """Return the mean of a metric with its interval."""
    what = "true" if figures["type"] == "boolean" else "mean"
    interval = ""
    if figures["low"] is not None:
        interval = f" ({figures['low']:.4g} to {figures['high']:.4g})"
    return f"{what} {figures['mean']:.4g}{interval} of {figures['count']}"


def counts(samples: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in samples.items())


def fact_rows(answer: PolicyVersionDetails) -> Iterator[tuple[str, str]]:
    """Yield what is known of a version, a line each."""
    yield "version", cell(answer["policy_version"])
    yield "state", cell(answer["state"])
    yield "ancestors", ", ".join(map(str, answer["ancestors"]))
    yield "created", cell(answer["created_time"])
    yield "serving since", cell(answer["activated_time"])
    yield "algorithms", ", ".join(answer["algorithms"])
    yield "learned from", counts(answer["samples"])
    for name, value in answer["settings"].items():
        yield f"setting {name}", cell(value)
    for name, value in answer["metrics"].items():
        yield f"training {name}", cell(value)
    for name, value in (answer["evaluation"] or {}).items():
        yield f"evaluation {name}", cell(value)
    for name, value in (answer["traffic"] or {}).items():
        if name != "metrics":
            yield f"traffic {name}", cell(value)
    for figures in answer["traffic"]["metrics"] if answer["traffic"] else ():
        yield f"metric {figures['name']}", measured(figures)


def decision_rows(answer: PolicyVersionDetails) -> Iterator[tuple[Any, ...]]:
    """Yield its decisions, a line each."""
    for decision in answer["decisions"]:
        yield (
            (decision["decided_time"] or "")[:19],
            decision["actor"],
            decision["kind"],
            decision["outcome"],
            decision["reason"],
        )


def flatten(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every value of a document with its path, a line each."""
    for name, value in document.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for number, item in enumerate(value):
                yield from flatten({str(number): item}, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield f"{prefix}{name}", ", ".join(cell(item) for item in value)
        else:
            yield f"{prefix}{name}", cell(value)


def print_items(suite: str, columns: Mapping[str, Any]) -> None:
    """Print the items of a suite on which the candidate lost most against version 0."""
    values = zip(
        columns["item"], columns["candidate"], columns["stable"], columns["anchor"], strict=True
    )
    known = [row for row in values if row[1] is not None and row[3] is not None]
    known.sort(key=lambda row: row[1] - row[3])
    title = f"{suite.upper()}: {min(LOSSES, len(known))} OF {len(known)} ITEMS, WORST FIRST"
    print_table(("CANDIDATE", "STABLE", "VERSION 0", title), worst_rows(known))


def worst_rows(rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Yield the first items, the name last."""
    for item, *values in rows[:LOSSES]:
        yield *(None if value is None else f"{value:.3f}" for value in values), item


def use_rows(answer: PolicyVersionDetails) -> Iterator[tuple[Any, ...]]:
    """Yield the samples it learned from, a line each."""
    for use in answer["uses"]:
        about = ", ".join(use["completion_ids"])
        yield use["sample_id"], use["objective"], use["step"], use["epoch"], about
