"""`tuneloop feedback`: judge completions by their ids."""

from typing import Annotated, Any, Literal

import typer

from tuneloop.commands.client import DEFAULT_URL, ApiKey, Client, Url

feedback_app = typer.Typer(no_args_is_help=True, help="Judge completions by their ids.")

User = Annotated[
    str | None, typer.Option(help="Who judges; by default whoever the completion was made for.")
]
FeedbackId = Annotated[
    str | None, typer.Option("--id", help="Id of the feedback, so that a repeat is not counted.")
]


@feedback_app.command()
def thumb(
    completion_id: Annotated[str, typer.Argument(help="Which completion.")],
    value: Annotated[Literal["up", "down"], typer.Argument(help="up or down.")],
    *,
    user: User = None,
    feedback_id: FeedbackId = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Say that a completion is good or bad."""
    body = {"kind": "thumb", "completion_id": completion_id, "value": value}
    send(Client(url, api_key), body, user, feedback_id)


@feedback_app.command()
def comparison(
    chosen: Annotated[str, typer.Argument(help="The better completion.")],
    rejected: Annotated[list[str], typer.Argument(help="The worse ones.")],
    *,
    user: User = None,
    feedback_id: FeedbackId = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Say that one completion is better than others."""
    body = {"kind": "comparison", "chosen": chosen, "rejected": rejected}
    send(Client(url, api_key), body, user, feedback_id)


@feedback_app.command()
def show(
    feedback_id: Annotated[str, typer.Argument(help="Id of the feedback.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Show feedback as it was accepted."""
    for name, value in Client(url, api_key).call("GET", f"/v1/feedback/{feedback_id}").items():
        typer.echo(f"{name}: {value}")


def send(client: Client, body: dict[str, Any], user: str | None, feedback_id: str | None) -> None:
    """Send it; print the id once it is stored."""
    named = {"user": user, "id": feedback_id}
    body |= {name: value for name, value in named.items() if value is not None}
    typer.echo(client.call("POST", "/v1/feedback", body)["id"])
