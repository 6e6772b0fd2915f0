"""`tuneloop signals`: what users' signals were found to predict."""

import typer

from tuneloop.api.feedback import ShareWithInterval, SignalReport
from tuneloop.cli.options import ApiKey, AsJson, Url, connected
from tuneloop.cli.output import print_json, print_table


def signals(*, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """Show what signals (copied, edited, …) predict: the thumbs of answers with and without."""
    with connected(url, api_key) as client:
        answer: SignalReport = client.request("GET", "/v1/signals/report")
    if as_json:
        print_json(answer)
        return
    rows = [
        (
            kind["kind"],
            kind["count"],
            kind["rated"],
            share_text(kind["up_with"]),
            share_text(kind["up_without"]),
            "" if kind["gain"] is None else f"{kind['gain']:+.3f} ({kind['gain_low']:+.3f})",
            "yes" if kind["used"] else "no",
            kind["reason"],
        )
        for kind in answer["kinds"]
    ]
    columns = ("SIGNAL", "ANSWERS", "RATED", "UP WITH", "UP WITHOUT", "GAIN (LEAST)", "USED", "WHY")
    print_table(columns, rows)
    typer.echo(
        f"{answer['rated']} of {answer['answers']} answers have a thumb, of which "
        f"{answer['up']:.0%} are up, weighted; the reward model has learned from the signals of "
        f"{answer['learned']}"
    )


def share_text(share: ShareWithInterval | None) -> str:
    """Return a share with its interval, or nothing."""
    if share is None:
        return ""
    return f"{share['value']:.0%} ({share['low']:.0%} to {share['high']:.0%})"
