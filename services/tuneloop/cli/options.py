"""Options and errors of the commands that call a running service."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from tuneloop.errors import TuneloopError
from tuneloop.rollouts import read_tag

if TYPE_CHECKING:
    from tuneloop.client import Client

Url = Annotated[
    str | None,
    typer.Option(
        envvar="TUNELOOP_URL", help="URL of the service.", show_default="http://127.0.0.1:8000"
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="TUNELOOP_API_KEY",
        show_default=False,
        help="API key, if the service needs one.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def check_tags(given: list[str] | None) -> list[str] | None:
    """Return tags of the command line; one that is not `name=value` ends the command."""
    try:
        for text in given or ():
            read_tag(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return given


Tags = Annotated[
    list[str] | None,
    typer.Option(
        "--tag",
        metavar="NAME=VALUE",
        help="Only of requests with this in their metadata. Repeat it for several.",
        callback=check_tags,
    ),
]


@contextmanager
def connected(
    url: str | None, api_key: str | None, *, user: str | None = None
) -> Iterator["Client"]:
    """Open a client; an error of a call is printed in one line and ends the command."""
    from tuneloop.client import Client

    with Client(url, api_key=api_key, user=user) as client:
        try:
            yield client
        except TuneloopError as error:
            fail(error.message)


def fail(message: str) -> NoReturn:
    """Print an error and exit with status 1."""
    typer.echo(message, err=True)
    raise typer.Exit(1)
