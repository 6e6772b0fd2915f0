"""`tuneloop forget`: remove an end user's data."""

from typing import Annotated
from urllib.parse import quote

import typer

from tuneloop.commands.options import ApiKey, AsJson, Url, connected
from tuneloop.commands.output import print_fields, print_json


def forget(
    user: Annotated[str, typer.Argument(help="The user, as the application names them.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Remove a user's rollouts and feedback, and name the versions that learned from them.

    What those versions learned stays in them: roll back, or train without them.
    """
    if not yes:
        typer.confirm(f"Remove everything of {user}? It cannot be had back", abort=True, err=True)
    with connected(url, api_key) as client:
        answer = client.request("DELETE", f"/v1/users/{quote(user, safe='')}")
    (print_json if as_json else print_fields)(answer)
