"""`tuneloop feedback`: give feedback on completions and sessions; read what was collected."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast
from urllib.parse import quote, urlencode

import typer

from tuneloop.api.feedback import Feedback, FeedbackPage
from tuneloop.cli.options import ApiKey, AsJson, Tags, Url, connected, fail
from tuneloop.cli.output import (
    effects_in_words,
    feedback_row,
    print_fields,
    print_json,
    print_table,
)
from tuneloop.errors import TuneloopError
from tuneloop.feedback import FeedbackKind, FeedbackStatus
from tuneloop.text.lines import decode_text, split_lines
from tuneloop.text.unicode import read_json_object

if TYPE_CHECKING:
    from tuneloop.client import Details, FeedbackBody, Receipt, SessionDetails

feedback_app = typer.Typer(
    no_args_is_help=True,
    help="Give feedback on completions by their ids; list, show and retract it.",
)

Completion = Annotated[str, typer.Argument(help="Id of the completion.")]
Judged = Annotated[
    str, typer.Argument(metavar="ID", help="Of the completion, or with --session of the session.")
]
OfSession = Annotated[
    bool, typer.Option("--session", help="Judge a whole session, by the id your requests name.")
]
User = Annotated[
    str | None, typer.Option(help="Who judges; by default the user whom the completion was for.")
]
FeedbackId = Annotated[
    str | None, typer.Option("--id", help="Id of the feedback, so that a repeat is not counted.")
]
Words = Annotated[list[str], typer.Argument(help="The words; - reads standard input.")]


@feedback_app.command(epilog="Example: tuneloop feedback thumb chatcmpl-… up --user ann")
def thumb(
    judged: Judged,
    value: Annotated[Literal["up", "down"], typer.Argument(help="up or down.")],
    *,
    session: OfSession = False,
    user: User = None,
    feedback_id: FeedbackId = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Give a completion or a session a thumb up or down."""
    about, given = judge(judged, session, details(user, feedback_id))
    with connected(url, api_key) as client:
        print_receipt(client.thumb(about, value, **given), as_json)


@feedback_app.command(epilog="Example: tuneloop feedback rating chatcmpl-… 0.8")
def rating(
    judged: Judged,
    value: Annotated[float, typer.Argument(help="A number; larger is better.")],
    *,
    session: OfSession = False,
    user: User = None,
    feedback_id: FeedbackId = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Rate a completion or a session with a number."""
    about, given = judge(judged, session, details(user, feedback_id))
    with connected(url, api_key) as client:
        print_receipt(client.rate(about, value, **given), as_json)


@feedback_app.command(epilog="Example: tuneloop feedback comparison chatcmpl-A chatcmpl-B")
def comparison(
    chosen: Annotated[str, typer.Argument(help="The better completion.")],
    rejected: Annotated[list[str], typer.Argument(help="The worse ones.")],
    *,
    user: User = None,
    feedback_id: FeedbackId = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Prefer one completion over others."""
    with connected(url, api_key) as client:
        print_receipt(client.compare(chosen, *rejected, **details(user, feedback_id)), as_json)


@feedback_app.command(epilog="Example: tuneloop feedback ranking chatcmpl-A chatcmpl-B chatcmpl-C")
def ranking(
    best_first: Annotated[list[str], typer.Argument(help="Completions, the best first.")],
    *,
    user: User = None,
    feedback_id: FeedbackId = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Rank completions, the best first."""
    with connected(url, api_key) as client:
        print_receipt(client.rank(best_first, **details(user, feedback_id)), as_json)


@feedback_app.command(epilog="Example: tuneloop feedback demonstration chatcmpl-… - < better.txt")
def demonstration(
    completion: Completion,
    text: Words,
    *,
    user: User = None,
    feedback_id: FeedbackId = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Give a better answer than the completion."""
    with connected(url, api_key) as client:
        print_receipt(
            client.edit(completion, read_text(text), **details(user, feedback_id)), as_json
        )


@feedback_app.command(epilog='Example: tuneloop feedback comment chatcmpl-… "too long"')
def comment(
    completion: Completion,
    text: Words,
    *,
    user: User = None,
    feedback_id: FeedbackId = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Comment on a completion."""
    with connected(url, api_key) as client:
        print_receipt(
            client.comment(completion, read_text(text), **details(user, feedback_id)), as_json
        )


@feedback_app.command(epilog="Example: tuneloop feedback metric chatcmpl-… task_solved true")
def metric(
    judged: Judged,
    name: Annotated[str, typer.Argument(help="What was measured.")],
    value: Annotated[str, typer.Argument(help="true, false or a number.")],
    *,
    session: OfSession = False,
    user: User = None,
    feedback_id: FeedbackId = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Send a figure that you measured of a completion or a session."""
    measured = measured_value(value)
    about, given = judge(judged, session, details(user, feedback_id))
    with connected(url, api_key) as client:
        print_receipt(client.measure(about, name, measured, **given), as_json)


@feedback_app.command(epilog="Example: tuneloop feedback batch thumbs.jsonl")
def batch(
    file: Annotated[Path, typer.Argument(help="JSON lines, one body each; - is standard input.")],
    *,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Send many bodies of POST /v1/feedback at once; exits with 1 if one is refused."""
    numbered = list(bodies_in(file))
    with connected(url, api_key) as client:
        outcomes = client.feedback([body for _, body in numbered])
    refused = [outcome for outcome in outcomes if isinstance(outcome, TuneloopError)]
    if as_json:
        print_json([outcome_document(outcome) for outcome in outcomes])
    else:
        for (number, _), outcome in zip(numbered, outcomes, strict=True):
            if isinstance(outcome, TuneloopError):
                typer.echo(f"{file}:{number}: {outcome.message}", err=True)
        typer.echo(f"accepted {len(outcomes) - len(refused)}, refused {len(refused)}")
    if refused:
        raise typer.Exit(1)


@feedback_app.command("list", epilog="Example: tuneloop feedback list --kind thumb --value down")
def list_feedback(
    *,
    kind: Annotated[
        FeedbackKind | None,
        typer.Option(help="Only this kind."),
    ] = None,
    value: Annotated[
        Literal["up", "down"] | None, typer.Option(help="Only thumbs with this value.")
    ] = None,
    version: Annotated[
        int | None, typer.Option(min=0, help="Only on answers of this version.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="Only of this user.")] = None,
    status: Annotated[FeedbackStatus | None, typer.Option(help="Only with this status.")] = None,
    tag: Tags = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    before: Annotated[
        str | None, typer.Option(help="Next page: the value that the page before printed.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List the collected feedback, newest first."""
    filters = {
        "kind": kind,
        "value": value,
        "policy_version": version,
        "user": user,
        "status": status,
        "tag": tag,
        "limit": limit,
        "before": before,
    }
    query = urlencode({n: v for n, v in filters.items() if v is not None}, doseq=True)
    with connected(url, api_key) as client:
        page: FeedbackPage = client.request("GET", f"/v1/feedback?{query}")
    if as_json:
        print_json(page)
        return
    columns = ("TIME", "KIND", "STATUS", "VERSION", "ID", "JUDGEMENT")
    print_table(columns, map(feedback_row, page["data"]))
    if page["next"] is not None:
        typer.echo(f"more: --before {page['next']}", err=True)


@feedback_app.command(epilog="Example: tuneloop feedback show fb-…")
def show(
    feedback_id: Annotated[str, typer.Argument(help="Id of the feedback.")],
    *,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show one feedback, and how much likelier learning from it made what it is about."""
    with connected(url, api_key) as client:
        document: Feedback = client.request("GET", f"/v1/feedback/{quote(feedback_id, safe='')}")
    if as_json:
        print_json(document)
        return
    print_fields({name: value for name, value in document.items() if name != "effects"})
    if words := effects_in_words(document["effects"]):
        typer.echo(words)


@feedback_app.command(epilog="Example: tuneloop feedback retract fb-…")
def retract(
    feedback_id: Annotated[str, typer.Argument(help="Id of the feedback.")],
    *,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Retract feedback: no later batch learns from it."""
    with connected(url, api_key) as client:
        receipt = client.retract(feedback_id)
    if as_json:
        print_json(outcome_document(receipt))
    else:
        typer.echo(f"{receipt.id} is retracted; versions that learned from it do not change")


def details(user: str | None, feedback_id: str | None) -> "Details":
    """Return the options that every kind of feedback has."""
    given: Details = {}
    if user is not None:
        given["user"] = user
    if feedback_id is not None:
        given["id"] = feedback_id
    return given


def judge(name: str, session: bool, given: "Details") -> tuple[str | None, "SessionDetails"]:
    """Return the completion that is judged, None for a session, and the options with that."""
    full = cast("SessionDetails", {**given})
    if not session:
        return name, full
    full["session_id"] = name
    return None, full


def measured_value(given: str) -> bool | float:
    """Return the value of a metric; end the command where it is none."""
    if given in ("true", "false"):
        return given == "true"
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        fail(f"VALUE: {given!r} is not true, false or a number")
    return value


def read_text(given: list[str]) -> str:
    """Return the text of an argument; `-` reads standard input."""
    return text_in(Path("-")) if given == ["-"] else " ".join(given)


def text_in(file: Path) -> str:
    """Return the text of a file, or of standard input; end the command where it is none."""
    try:
        return decode_text(sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes())
    except (OSError, ValueError) as error:
        fail(f"{file}: {error}")


def print_receipt(receipt: "Receipt", as_json: bool) -> None:
    """Print the id of stored feedback."""
    if as_json:
        print_json(outcome_document(receipt))
    else:
        typer.echo(receipt.id)


def outcome_document(outcome: "Receipt | TuneloopError") -> dict[str, Any]:
    """Return a receipt or an error as JSON."""
    if isinstance(outcome, TuneloopError):
        code = outcome.reason.lower()
        return {"error": {"message": outcome.message, "param": outcome.param, "code": code}}
    return {"id": outcome.id, "status": outcome.status}


def bodies_in(file: Path) -> Iterator[tuple[int, "FeedbackBody"]]:
    """Yield the numbered bodies of a file of JSON lines; end the command at an invalid line."""
    for number, line in enumerate(split_lines(text_in(file)), start=1):
        if not line.strip():
            continue
        try:
            yield number, cast("FeedbackBody", read_json_object(line))
        except ValueError as error:
            fail(f"{file}:{number}: {error}")
