"""The nats-server of `tuneloop up` is for its own processes alone."""

import asyncio
from pathlib import Path

import pytest
from support.nats_servers import Server

from tuneloop.bus.connection import NatsConnection
from tuneloop.supervisor import nats

PASSWORD = "12" * 32


async def connects(url: str) -> bool:
    connection = NatsConnection(url, name="test")
    await connection.start(2)
    try:
        return connection.connected
    finally:
        await connection.close()


async def test_only_who_has_the_password_connects(
    tmp_path: Path, unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = nats.write_config(tmp_path, port=unused_tcp_port, password=PASSWORD)
    server = Server(config=config, port=unused_tcp_port)
    server.start()
    try:
        await asyncio.to_thread(server.wait)
        assert await connects(nats.url_of(unused_tcp_port, PASSWORD))
        assert not await connects(nats.url_of(unused_tcp_port))
        assert not await connects(nats.url_of(unused_tcp_port, "wrong"))
    finally:
        server.kill()
    assert not await connects(nats.url_of(unused_tcp_port, PASSWORD))
    assert f"127.0.0.1:{unused_tcp_port}" in caplog.text
    assert PASSWORD not in caplog.text
