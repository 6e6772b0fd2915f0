"""A running service, seen from the command line."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[str, typer.Option(envvar="TUNELOOP_URL", help="Where the service is.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key", envvar="TUNELOOP_API_KEY", show_default=False, help="Key, where one is needed."
    ),
]


class Client:
    """Calls of the HTTP surface; a failure is told in one line and ends the command."""

    def __init__(
        self, url: str, api_key: str | None, transport: "httpx.BaseTransport | None" = None
    ):
        import httpx

        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = url.rstrip("/")
        self.http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(600.0, connect=5.0),
            transport=transport,
        )

    def call(self, method: str, path: str, body: object = None) -> Any:
        """The JSON answer of one call."""
        import httpx

        try:
            response = self.http.request(method, path, json=body)
        except httpx.HTTPError as error:
            self.unreachable(error)
        self.check(response)
        return response.json()

    def stream(self, path: str, body: object) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed answer."""
        import httpx

        try:
            with self.http.stream("POST", path, json=body) as response:
                if response.is_error:
                    response.read()
                self.check(response)
                for line in response.iter_lines():
                    if line == "data: [DONE]":
                        return
                    if line.startswith("data: "):
                        chunk = json.loads(line.removeprefix("data: "))
                        if "error" in chunk:
                            fail(chunk["error"]["message"])
                        yield chunk
        except httpx.HTTPError as error:
            self.unreachable(error)
        fail("the answer was cut off")

    def check(self, response: "httpx.Response") -> None:
        """End the command with the service's message unless the call succeeded."""
        if response.is_success:
            return
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"{self.url} answered with status {response.status_code}"
        fail(message)

    def unreachable(self, error: Exception) -> NoReturn:
        fail(f"no answer from {self.url}: {error}. Is it running? Start it with: tuneloop up")


def fail(message: str) -> NoReturn:
    """Say what is wrong and end with status 1."""
    typer.echo(message, err=True)
    raise typer.Exit(1)
