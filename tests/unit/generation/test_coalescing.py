"""Coalescing: fewer messages, in order, and errors pass through."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from tuneloop.generation.coalescing import coalesce, message_seconds


async def test_coalescing_keeps_order_and_sends_the_first_item_at_once() -> None:
    async def source() -> AsyncGenerator[int, None]:
        for i in range(50):
            yield i
            await asyncio.sleep(0.001)

    batches = [batch async for batch in coalesce(source(), lambda: 0.02)]
    assert [i for batch in batches for i in batch] == list(range(50))
    assert len(batches[0]) < 5
    assert len(batches) < 40


def test_many_streams_on_few_cores_send_fewer_messages_each() -> None:
    assert message_seconds(1, cores=2) == 0.03
    assert message_seconds(8, cores=2) == 8 / 80
    assert message_seconds(32, cores=2) == 0.25
    assert message_seconds(32, cores=16) == 32 / 640
    assert message_seconds(1000, cores=2) == 0.25


async def test_coalescing_passes_an_error_on_after_the_items_before_it() -> None:
    async def source() -> AsyncGenerator[int, None]:
        yield 1
        raise KeyError("broken")

    stream = coalesce(source(), lambda: 0.01)
    assert await anext(stream) == [1]
    with pytest.raises(KeyError):
        await anext(stream)


async def test_closing_a_coalesced_stream_closes_its_source() -> None:
    closed = asyncio.Event()

    async def source() -> AsyncGenerator[int, None]:
        try:
            yield 1
            await asyncio.Future()
        finally:
            closed.set()

    stream = coalesce(source(), lambda: 0.01)
    await anext(stream)
    await stream.aclose()
    assert closed.is_set()
