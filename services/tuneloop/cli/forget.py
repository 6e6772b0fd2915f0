"""`tuneloop forget`: delete an end user's data."""

from typing import Annotated
from urllib.parse import quote

import typer

from tuneloop.api.policies import ForgottenUser
from tuneloop.cli.options import ApiKey, AsJson, Url, connected
from tuneloop.cli.output import print_fields, print_json


def forget(
    user: Annotated[str, typer.Argument(help="The user, as the application names them.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Delete a user's rollouts and feedback, and list the versions that learned from them.

    Weights are not unlearned: what those versions learned stays in them. `tuneloop policies
    rebuild` trains again without it.
    """
    if not yes:
        typer.confirm(f"Remove all data of {user}? This cannot be undone", abort=True, err=True)
    with connected(url, api_key) as client:
        answer: ForgottenUser = client.request("DELETE", f"/v1/users/{quote(user, safe='')}")
    if as_json:
        print_json(answer)
        return
    print_fields(answer)
    offer_rebuild(user, answer)


def offer_rebuild(user: str, answer: ForgottenUser) -> None:
    """Print how to train again without what was learned from the user."""
    if answer["rebuild_from"] is not None:
        typer.echo(
            f"To train again from version {answer['rebuild_from']}, the last one before them, on "
            f"what is left:\n  tuneloop policies rebuild --before-user {user!r}",
            err=True,
        )
