"""The rows of a running service, over HTTP."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx

from tuneloop.errors import FailedPrecondition, TuneloopError, Unavailable
from tuneloop.learner.importing import Imported, ImportedRow

PAGE = 256


class Service:
    """A service that exports and imports; every call raises `TuneloopError` where it fails."""

    def __init__(
        self, url: str, api_key: str | None, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self._url,
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(180.0, connect=5.0),
            transport=transport,
        )

    def export(self, kind: str, filters: Mapping[str, Any]) -> Iterator[list[str]]:
        """JSON objects, some at a time."""
        wanted = {name: value for name, value in filters.items() if value is not None}
        rows: list[str] = []
        try:
            with self._http.stream("GET", "/v1/export", params={"kind": kind} | wanted) as response:
                if response.is_error:
                    response.read()
                self._check(response)
                for line in response.iter_lines():
                    rows.append(line)
                    if len(rows) == PAGE:
                        yield rows
                        rows = []
        except httpx.HTTPError as error:
            raise Unavailable(f"no whole answer from {self._url}: {error}") from error
        if rows:
            yield rows

    def add(self, kind: str, rows: Sequence[ImportedRow]) -> Imported:
        """Add rows: all, or none where one is wrong."""
        body = {
            "kind": kind,
            "rows": [
                {"place": row.place, "row": row.row, "occurrence": row.occurrence} for row in rows
            ],
        }
        try:
            response = self._http.post("/v1/import", json=body)
        except httpx.HTTPError as error:
            raise Unavailable(f"no answer from {self._url}: {error}") from error
        self._check(response)
        answer = response.json()
        return Imported(added=answer["added"], known=answer["known"])

    def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        try:
            message = str(json.loads(response.content)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            message = f"{self._url} answered with status {response.status_code}"
        unavailable: type[TuneloopError] = Unavailable
        raise (unavailable if response.status_code >= 500 else FailedPrecondition)(message)
