"""The rows of a running service, over HTTP."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx

from tuneloop.client import Client
from tuneloop.client.exceptions import error_from_response, error_from_transport
from tuneloop.learner.intake.importer import Imported, ImportedRow
from tuneloop.text.lines import lines_of

PAGE = 256


class RunningService:
    """A service that exports and imports; every call raises `TuneloopError` where it fails."""

    def __init__(
        self, url: str | None, api_key: str | None, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._client = Client(url, api_key=api_key, transport=transport)
        self._http = httpx.Client(**self._client.connection.http(), transport=transport)

    def export(self, kind: str, filters: Mapping[str, Any]) -> Iterator[list[str]]:
        """JSON objects, some at a time."""
        wanted = {name: value for name, value in filters.items() if value is not None}
        rows: list[str] = []
        try:
            with self._http.stream("GET", "/v1/export", params={"kind": kind} | wanted) as response:
                if response.is_error:
                    response.read()
                    raise error_from_response(response)
                for line in lines_of(response.iter_bytes()):
                    rows.append(line)
                    if len(rows) == PAGE:
                        yield rows
                        rows = []
        except httpx.TransportError as error:
            raise error_from_transport(self._client.connection.url, error) from error
        if rows:
            yield rows

    def add(self, kind: str, rows: Sequence[ImportedRow]) -> Imported:
        """Add rows: all, or none where one is wrong. Safe to repeat, and repeated."""
        given = [{"place": row.place, "row": row.row, "occurrence": row.occurrence} for row in rows]
        answer = self._client.request("POST", "/v1/import", {"kind": kind, "rows": given})
        return Imported(added=answer["added"], known=answer["known"])
