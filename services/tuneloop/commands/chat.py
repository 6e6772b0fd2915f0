"""`tuneloop chat`: ask once, or talk and press thumbs."""

import getpass
from typing import Annotated, Any

import typer

from tuneloop.commands.client import DEFAULT_URL, ApiKey, Client, Url

HELP = "/up and /down judge the last answer, /new starts afresh, /quit ends."


def chat(
    prompt: Annotated[
        list[str] | None, typer.Argument(help="What to ask; without it a conversation starts.")
    ] = None,
    *,
    model: Annotated[str, typer.Option(help="Policy to ask.")] = "tuneloop",
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Chat with the service; thumbs in a conversation teach it."""
    options = {"max_tokens": max_tokens, "temperature": temperature, "model": model}
    given = {name: value for name, value in options.items() if value is not None}
    conversation = Conversation(Client(url, api_key), given, system)
    if prompt:
        conversation.ask(" ".join(prompt))
        return
    typer.secho(HELP, dim=True, err=True)
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
        if line == "/quit":
            return
        conversation.take(line)


class Conversation:
    """Turns so far, and the answer that a thumb would judge."""

    def __init__(self, client: Client, options: dict[str, Any], system: str | None) -> None:
        self.client = client
        self.options = {**options, "user": f"cli-{getpass.getuser()}", "stream": True}
        self.opening = [{"role": "system", "content": system}] if system else []
        self.messages = list(self.opening)
        self.last_completion_id: str | None = None

    def take(self, line: str) -> None:
        """One line of the user's: a command or a question."""
        if line in ("/up", "/down"):
            self.judge(line.removeprefix("/"))
        elif line == "/new":
            self.messages = list(self.opening)
            self.last_completion_id = None
        elif line.startswith("/"):
            typer.echo(HELP)
        elif line:
            self.ask(line)

    def ask(self, text: str) -> None:
        """Ask and print the answer as it comes."""
        self.messages.append({"role": "user", "content": text})
        body = {**self.options, "messages": self.messages}
        answer, version = "", None
        for chunk in self.client.stream("/v1/chat/completions", body):
            version = chunk["policy_version"]
            for choice in chunk["choices"]:
                self.last_completion_id = choice["completion_id"]
                piece = choice["delta"].get("content") or ""
                answer += piece
                typer.echo(piece, nl=False)
        typer.echo()
        typer.secho(f"[version {version}, {self.last_completion_id}]", dim=True, err=True)
        self.messages.append({"role": "assistant", "content": answer})

    def judge(self, value: str) -> None:
        """A thumb on the last answer."""
        if self.last_completion_id is None:
            typer.echo("There is no answer to judge yet.")
            return
        body = {
            "kind": "thumb",
            "completion_id": self.last_completion_id,
            "value": value,
            "user": self.options["user"],
        }
        self.client.call("POST", "/v1/feedback", body)
        typer.echo("Stored. The next version learns from it.")
