"""`tuneloop lineage`: the versions that learned from feedback, or from a user."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote

import typer

from tuneloop.api.policies import FeedbackLineage, UserLineage
from tuneloop.cli.effects import effects_in_words
from tuneloop.cli.options import ApiKey, AsJson, Url, connected
from tuneloop.cli.output import cell, print_json, print_table

lineage_app = typer.Typer(
    no_args_is_help=True, help="Show the versions that learned from feedback, or from a user."
)


@lineage_app.command(epilog="Example: tuneloop lineage feedback fb-1 --json")
def feedback(
    feedback_id: Annotated[str, typer.Argument(metavar="ID", help="Of the feedback.")],
    *,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show the samples of a feedback event, and the versions that learned from them."""
    with connected(url, api_key) as client:
        answer: FeedbackLineage = client.request(
            "GET", f"/v1/lineage/feedback/{quote(feedback_id, safe='')}"
        )
    if as_json:
        print_json(answer)
        return
    print_table(("", ""), fact_rows(answer, ("id", "kind", "status", "accepted_time")))
    rows = [
        (s["sample_id"], s["objective"], s["state"], join_numbers(s["steps"]))
        for s in answer["samples"]
    ]
    print_table(("SAMPLE", "OBJECTIVE", "STATE", "STEPS"), rows)
    if words := effects_in_words(answer["effects"]):
        typer.echo(words)


@lineage_app.command(epilog="Example: tuneloop lineage user ann --json")
def user(
    user: Annotated[str, typer.Argument(help="The user, as the application names them.")],
    *,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show counts of a user's data, and the versions that learned from it, forgotten data too."""
    with connected(url, api_key) as client:
        answer: UserLineage = client.request("GET", f"/v1/lineage/users/{quote(user, safe='')}")
    if as_json:
        print_json(answer)
        return
    print_table(("", ""), fact_rows(answer, ("id", "rollouts", "feedback", "rebuild_from")))
    for record in answer["forgotten"]:
        typer.echo(
            f"forgotten {record['time']}: {record['rollouts']} rollouts and {record['feedback']} "
            f"feedback, which versions {join_numbers(record['policy_versions'])} had learned from"
        )


def fact_rows(
    answer: FeedbackLineage | UserLineage, names: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Yield what is known, a line each."""
    document: Mapping[str, Any] = answer
    for name in names:
        if document[name] is not None:
            yield name.replace("_", " "), cell(document[name])
    for model, reached in (("policy", answer["policy"]), ("reward model", answer["reward_model"])):
        for how, versions in (("direct", reached["direct"]), ("descended", reached["descended"])):
            if versions:
                yield f"{model}, {how}", f"versions {join_numbers(versions)}"


def join_numbers(numbers: Sequence[int]) -> str:
    """Return the numbers, or `none`."""
    return ", ".join(map(str, numbers)) or "none"
