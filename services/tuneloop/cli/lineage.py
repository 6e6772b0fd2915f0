"""`tuneloop lineage`: the versions that learned from feedback, a session, a user or a sender."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote

import typer

from tuneloop.api.learner import LearnerStatus
from tuneloop.api.policies import (
    FeedbackLineage,
    ForgottenRecord,
    SenderLineage,
    Session,
    ShareOfVersion,
    UserLineage,
)
from tuneloop.cli.options import ApiKey, AsJson, Url, connected
from tuneloop.cli.output import cell, effects_in_words, print_json, print_table

lineage_app = typer.Typer(
    no_args_is_help=True,
    help="Show the versions that learned from feedback, a session, user, key, tenant or tag.",
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


@lineage_app.command(epilog="Example: tuneloop lineage session chat-7 --json")
def session(
    session_id: Annotated[
        str, typer.Argument(metavar="ID", help="The session, as the application names it.")
    ],
    *,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show the turns of a session, the feedback on it and them, and what learned from them."""
    with connected(url, api_key) as client:
        answer: Session = client.request("GET", f"/v1/sessions/{quote(session_id, safe='')}")
    if as_json:
        print_json(answer)
        return
    print_table(("", ""), fact_rows(answer, ("id", "rebuild_from")))
    turns = [
        (t["completion_id"], t["policy_version"], join_numbers(t["used_by_versions"]))
        for t in answer["turns"]
    ]
    print_table(("TURN", "VERSION", "LEARNED FROM BY"), turns)
    given = [
        (f["id"], f["kind"], f["status"], f["completion_id"] or "the session")
        for f in answer["feedback"]
    ]
    print_table(("FEEDBACK", "KIND", "STATUS", "ON"), given)
    print_forgotten(answer["forgotten"])


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
    names = ("id", "rollouts", "feedback", "signals", "rebuild_from")
    print_table(("", ""), fact_rows(answer, names))
    print_forgotten(answer["forgotten"])


@lineage_app.command(epilog="Example: tuneloop lineage key shop --json")
def key(
    name: Annotated[str, typer.Argument(help="Name or id of the key; local or public for none.")],
    *,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show what the feedback of an API key trained, and its share of each version."""
    with connected(url, api_key) as client:
        answer: SenderLineage = client.request("GET", f"/v1/lineage/keys/{quote(name, safe='')}")
    print_sender(answer, as_json)


@lineage_app.command(epilog="Example: tuneloop lineage tenant shop --json")
def tenant(
    name: Annotated[str, typer.Argument(help="The tenant.")],
    *,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show what the feedback of a tenant trained, and its share of each version."""
    with connected(url, api_key) as client:
        answer: SenderLineage = client.request("GET", f"/v1/lineage/tenants/{quote(name, safe='')}")
    print_sender(answer, as_json)


@lineage_app.command(epilog="Example: tuneloop lineage tag feature=search --json")
def tag(
    tag: Annotated[str, typer.Argument(metavar="NAME=VALUE", help="In metadata of requests.")],
    *,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show what answers to requests with a tag trained, and their share of each version."""
    with connected(url, api_key) as client:
        answer: SenderLineage = client.request("GET", f"/v1/lineage/tags/{quote(tag, safe='')}")
    print_sender(answer, as_json)


@lineage_app.command(epilog="Example: tuneloop lineage retracted --json")
def retracted(*, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """Show how much of what each version was trained on has been retracted since."""
    with connected(url, api_key) as client:
        answer: LearnerStatus = client.request("GET", "/v1/learner")
    if as_json:
        print_json(answer["retracted"])
    elif answer["retracted"]:
        print_shares(answer["retracted"])
    else:
        typer.echo("nothing that the policy was trained on has been retracted")


def print_forgotten(records: Sequence[ForgottenRecord]) -> None:
    """Print when a user or a session was forgotten."""
    for record in records:
        typer.echo(
            f"forgotten {record['time']}: {record['rollouts']} rollouts and {record['feedback']} "
            f"feedback, which versions {join_numbers(record['policy_versions'])} had learned from"
        )


def print_sender(answer: SenderLineage, as_json: bool) -> None:
    """Print what the feedback of a key or a tenant trained."""
    if as_json:
        print_json(answer)
        return
    names = ("id", "feedback", "retracted", "users", "rebuild_from")
    print_table(("", ""), fact_rows(answer, names))
    print_shares(answer["versions"])


def print_shares(parts: Sequence[ShareOfVersion]) -> None:
    """Print how many samples, and what share, of each version's own steps it is."""
    rows = [
        (part["policy_version"] or "none yet", part["samples"], f"{part['share']:.0%}")
        for part in parts
    ]
    print_table(("VERSION", "SAMPLES", "SHARE"), rows)


def fact_rows(
    answer: FeedbackLineage | UserLineage | SenderLineage | Session, names: Sequence[str]
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
