"""`tuneloop forget`: delete the data of an end user, or of a session."""

from typing import Annotated
from urllib.parse import quote

import typer

from tuneloop.api.policies import ForgottenUser
from tuneloop.cli.options import ApiKey, AsJson, Url, connected
from tuneloop.cli.output import print_fields, print_json


def forget(
    name: Annotated[
        str,
        typer.Argument(
            help="The user, or with --session the session, as the application names it."
        ),
    ],
    *,
    session: Annotated[
        bool, typer.Option("--session", help="Forget a session, not a user.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Delete the rollouts and feedback of a user, and list the versions that learned from them.

    With --session, those of one session: the events of its answers then stay in the stream of
    rollouts until that drops them by age.

    Weights are not unlearned: what those versions learned stays in them. `tuneloop policies
    rebuild` trains again without it.
    """
    if not yes:
        typer.confirm(f"Remove all data of {name}? This cannot be undone", abort=True, err=True)
    what = "sessions" if session else "users"
    with connected(url, api_key) as client:
        answer: ForgottenUser = client.request("DELETE", f"/v1/{what}/{quote(name, safe='')}")
    if as_json:
        print_json(answer)
        return
    print_fields(answer)
    offer_rebuild(answer, "" if session else name)


def offer_rebuild(answer: ForgottenUser, user: str) -> None:
    """Print how to train again without what was learned from a user, or from a session."""
    version = answer["rebuild_from"]
    if version is not None:
        start = f"--before-user {user!r}" if user else f"{version}"
        typer.echo(
            f"To train again from version {version}, the last one before them, on what is left:\n"
            f"  tuneloop policies rebuild {start}",
            err=True,
        )
