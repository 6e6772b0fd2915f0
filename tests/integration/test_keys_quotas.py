"""Quotas over a real nats-server: they outlive the gateway, and the server."""

from conftest import NatsServer

from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.gateway.edge.quotas import Book


async def test_usage_is_kept_by_jetstream(nats_server: NatsServer) -> None:
    bus = await JetStreamBus.connect(nats_server.url)
    one, two = Book(), Book()
    one.of("key-1").add(requests=1, tokens=10)
    two.of("key-1").add(requests=2, tokens=5)
    await one.flush(bus)
    await two.flush(bus)
    await bus.close()
    nats_server.kill()
    nats_server.start()
    bus = await JetStreamBus.connect(nats_server.url)
    restarted = Book()
    usage = restarted.of("key-1")
    await restarted.flush(bus)
    await bus.close()
    assert (usage.requests, usage.tokens) == (3, 15)
