"""Odd requests that generated ones rarely hit: an error that names the field, never a failure."""

from urllib.parse import quote

import httpx
import pytest

PATHS = [
    ("GET", "/v1/export?kind=pairs&since=0001-01-01T00:00:00%2B10:00"),
    ("GET", "/v1/export?kind=pairs&since=9999-12-31T23:59:59-10:00"),
    ("GET", "/v1/export?kind=pairs&since=1e30"),
    ("GET", "/v1/feedback?user=%ED%A0%80"),
    ("GET", "/v1/feedback?before=%00"),
    ("GET", "/v1/feedback?before=nan.x"),
    ("GET", "/v1/feedback/%ED%A0%80"),
    ("DELETE", "/v1/feedback/a%20b"),
    ("DELETE", "/v1/users/%ED%A0%80"),
    ("DELETE", f"/v1/users/{quote('ü' * 2000)}"),
    ("GET", "/v1/models/%ED%A0%80"),
    ("GET", "/v1/policies/99999999999999999999"),
    ("POST", "/v1/policies/-0/promote"),
]
BODIES = [
    b'{"kind":"pairs","rows":[{"place":"f:1","row":{"a":NaN}}]}',
    b'{"kind":"pairs","rows":[{"place":"f:1","row":{"a":"\\ud800"}}]}',
    b'{"kind":"pairs","rows":[{"place":"\\ud800","row":{}}]}',
    b"[" * 50_000,
    b'{"a":' * 5_000,
    b"\xff\xfe",
    b"",
    b"1e999",
]


async def test_paths_and_queries(http: httpx.AsyncClient) -> None:
    for method, path in PATHS:
        response = await http.request(method, path)
        assert response.status_code < 500, (path, response.text)


async def test_a_time_beyond_the_calendar_is_named(http: httpx.AsyncClient) -> None:
    response = await http.get(PATHS[0][1])
    assert (response.status_code, response.json()["error"]["param"]) == (400, "since")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/import",
        "/v1/chat/completions",
        "/v1/messages",
        "/v1/responses",
        "/v1/feedback/batch",
        "/v1/score",
    ],
)
async def test_bodies(http: httpx.AsyncClient, path: str) -> None:
    for body in BODIES:
        headers = {"content-type": "application/json"}
        response = await http.post(path, content=body, headers=headers)
        assert response.status_code < 500, (body[:80], response.text)
        assert "error" in response.json() or response.is_success
