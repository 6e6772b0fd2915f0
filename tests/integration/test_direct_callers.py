"""Without a key only the user who runs the gateway may call, and no proxy on its behalf."""

import asyncio
import os
import socket
import subprocess
import sys

import httpx
import pytest
from support.gateway_stack import Stack, running_gateway

from tuneloop.gateway.edge import local_user


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_user_of_a_connection_is_known(family: socket.AddressFamily) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with (
        socket.create_server((host, 0), family=family) as listening,
        socket.create_connection(listening.getsockname()[:2]) as caller,
    ):
        here, there = caller.getsockname()[:2], listening.getsockname()[:2]
        assert local_user.user_of(here, there) == os.getuid()
        assert local_user.user_of((host, 1), there) is None
        assert local_user.user_of(here, (host, 1)) is None
        assert not local_user.is_foreign(here, there)


def test_a_socket_for_both_families_is_found() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.socket(socket.AF_INET6) as caller,
    ):
        port = listening.getsockname()[1]
        caller.connect(("::ffff:127.0.0.1", port))
        here = ("127.0.0.1", caller.getsockname()[1])
        assert local_user.user_of(here, ("127.0.0.1", port)) == os.getuid()


def test_the_kernels_words() -> None:
    assert next(local_user.endpoints("127.0.0.1", 8000)) == (
        "0100007F:1F40" if sys.byteorder == "little" else "7F000001:1F40"
    )
    assert list(local_user.endpoints("testclient", 1)) == []


@pytest.mark.parametrize(("user", "status"), [(33, 403), (local_user.ROOT, 200), (None, 200)])
async def test_another_user_needs_a_key(
    user: int | None, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_user, "user_of", lambda *_: user)
    async with running_gateway() as stack, httpx.AsyncClient(base_url=stack.url) as http:
        answer = await http.post("/v1/learner/pause")
        assert answer.status_code == status
        assert (await http.get("/healthz")).status_code == 200
    if status == 403:
        assert "tuneloop keys create" in answer.json()["error"]["message"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run programs as another user")
async def test_a_program_of_another_user_is_refused(stack: Stack) -> None:
    program = """
import encodings.idna, http.client, os, sys
os.setuid(int(sys.argv[1]))
connection = http.client.HTTPConnection(sys.argv[2])
connection.request("POST", "/v1/learner/pause")
print(connection.getresponse().status)
"""

    def status_for(user: int) -> str:
        command = [sys.executable, "-c", program, str(user), stack.url.removeprefix("http://")]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    assert await asyncio.to_thread(status_for, 0) == "200"
    assert await asyncio.to_thread(status_for, 65534) == "403"


PROXIES = {
    "nginx as it comes": {"connection": "close"},
    "nginx with the usual headers": {"x-real-ip": "203.0.113.5", "x-forwarded-proto": "https"},
    "caddy": {"x-forwarded-for": "203.0.113.5", "x-forwarded-host": "llm.example"},
    "apache": {"x-forwarded-server": "llm.example", "via": "1.1 llm.example"},
    "cloudflare": {"cf-connecting-ip": "203.0.113.5"},
}


@pytest.mark.parametrize("name", PROXIES)
async def test_what_proxies_send_is_refused(name: str, stack: Stack) -> None:
    version = "1.0" if name == "nginx as it comes" else "1.1"
    host, port = stack.url.removeprefix("http://").split(":")
    lines = [f"POST /v1/learner/pause HTTP/{version}", f"host: {host}:{port}", "content-length: 0"]
    lines += [f"{header}: {value}" for header, value in PROXIES[name].items()]
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    assert b" 403 " in await reader.readline()
    writer.close()
