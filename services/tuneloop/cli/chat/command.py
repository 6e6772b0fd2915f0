"""`tuneloop chat`: one question, or a conversation with feedback."""

import getpass
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tuneloop.cli.options import ApiKey, AsJson, Url, connected, fail
from tuneloop.cli.output import print_json

if TYPE_CHECKING:
    from tuneloop.cli.chat.screens import Screen
    from tuneloop.client import ChatOptions, Client, Completion

EPILOG = (
    "In a conversation + and - on an empty line are thumbs, /help lists the rest.  "
    'Examples: tuneloop chat · tuneloop chat "Why is the sky blue?" --max-tokens 60 · '
    "tuneloop chat hello --json"
)


def chat(
    prompt: Annotated[
        list[str] | None, typer.Argument(help="What to ask; without it a conversation starts.")
    ] = None,
    *,
    model: Annotated[str, typer.Option(help="Policy to ask.")] = "tuneloop",
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy.")] = None,
    version: Annotated[
        int | None,
        typer.Option(min=0, help="Ask this version.", show_default="the one that serves"),
    ] = None,
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Whether the answers may be learned from.")
    ] = True,
    user: Annotated[
        str | None,
        typer.Option(help="User for questions and feedback.", show_default="cli- and your login"),
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Chat with the service; it learns from thumbs, edits and comparisons."""
    options: ChatOptions = {"model": model, "train": train}
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    if temperature is not None:
        options["temperature"] = temperature
    if version is not None:
        options["policy_version"] = version
    if system is not None:
        options["system"] = system
    user = user or f"cli-{getpass.getuser()}"
    with connected(url, api_key, user=user) as client:
        if prompt:
            ask_once(client, " ".join(prompt), options, as_json=as_json)
        elif as_json:
            fail('--json needs a question: tuneloop chat "…" --json')
        else:
            from tuneloop.cli.chat.conversation import Conversation

            Conversation(client, options, make_screen()).run()


def ask_once(client: "Client", question: str, options: "ChatOptions", *, as_json: bool) -> None:
    """Ask one question and print the answer."""
    if as_json:
        print_json(document(client.chat(question, **options)))
        return
    with client.stream(question, **options) as stream:
        make_screen().show(stream)
    completion = stream.completion
    typer.secho(f"[version {completion.policy_version}, {completion.id}]", dim=True, err=True)


def document(completion: "Completion") -> dict[str, object]:
    """Return an answer as JSON."""
    usage = completion.usage
    return {
        "id": completion.id,
        "text": completion.text,
        "policy_version": completion.policy_version,
        "finish_reason": completion.finish_reason,
        "completion_tokens": None if usage is None else usage.completion_tokens,
    }


def make_screen() -> "Screen":
    """Return a rich screen for a terminal, a plain one for pipes."""
    from tuneloop.cli.chat.screens import PlainScreen

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return PlainScreen()
    from tuneloop.cli.chat.conversation import commands
    from tuneloop.cli.chat.terminal import TerminalScreen

    return TerminalScreen(tuple(commands))
