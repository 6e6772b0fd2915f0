"""Deliveries that come twice, late and in another order."""

import asyncio
import base64
import contextlib
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import nats.errors
from nats.aio.client import Client

from tuneloop.bus import subjects
from tuneloop.supervisor.child import ServiceChild

DURABLES = {
    subjects.FEEDBACK: ["learner-tuneloop-feedback"],
    subjects.ROLLOUTS: ["learner-tuneloop-rollouts", "learner-tuneloop-scores", "reward"],
}
ABSENT = (nats.errors.Error, OSError, TimeoutError, ValueError, KeyError)
"""What comes of asking a bus that is down, or a service that starts."""
EVENTS = 8
PAUSE_SECONDS = 2.0
LONGEST_DELAY = 3.0
API_SECONDS = 2.0


@dataclass(slots=True)
class Disorder:
    """Meddles with the streams until cancelled."""

    service: ServiceChild
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)

    async def run(self) -> None:
        """Publish again and send back, in turn; a bus that is down is left alone."""
        while True:
            with contextlib.suppress(*ABSENT):
                async with asyncio.timeout(20):
                    await self._once()
            await asyncio.sleep(PAUSE_SECONDS)

    async def _once(self) -> None:
        client = Client()
        url = self.service.run_state()["nats_url"]
        await client.connect(url, connect_timeout=2, allow_reconnect=False, error_cb=ignored)
        try:
            stream = self.chance.choice(list(DURABLES))
            await self._publish_again(client, stream)
            await self._send_back(client, stream, self.chance.choice(DURABLES[stream]))
        finally:
            await client.close()

    async def _publish_again(self, client: Client, stream: str) -> None:
        """Stored events once more, as new ones, in a random order."""
        state = (await api(client, f"STREAM.INFO.{stream}", {}))["state"]
        if not state["messages"]:
            return
        newest = range(max(state["first_seq"], state["last_seq"] - 200), state["last_seq"] + 1)
        for sequence in self.chance.sample(newest, min(EVENTS, len(newest))):
            # Some may have been purged or never stored; some meet a full disk.
            with contextlib.suppress(ValueError):
                found = await api(client, f"STREAM.MSG.GET.{stream}", {"seq": sequence})
                message = found["message"]
                await client.request(
                    message["subject"],
                    base64.b64decode(message.get("data", "")),
                    timeout=API_SECONDS,
                )
                self.counts["published again"] += 1

    async def _send_back(self, client: Client, stream: str, durable: str) -> None:
        """Take some of a consumer's deliveries and hand them back after different delays."""
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox)
        request = json.dumps({"batch": EVENTS, "no_wait": True}).encode()
        await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}", request, reply=inbox)
        taken: list[Any] = []
        with contextlib.suppress(nats.errors.TimeoutError):
            while len(taken) < EVENTS:
                message = await subscription.next_msg(timeout=0.3)
                if not message.reply:
                    break
                taken.append(message)
        self.chance.shuffle(taken)
        for message in taken:
            delay = int(self.chance.uniform(0, LONGEST_DELAY) * 1e9)
            await client.publish(message.reply, b"-NAK " + json.dumps({"delay": delay}).encode())
            self.counts["sent back"] += 1
        await client.flush(timeout=API_SECONDS)


async def api(client: Client, verb: str, body: dict[str, Any]) -> Any:
    """Call JetStream's API; raises `ValueError` when it refuses."""
    answer = await client.request(f"$JS.API.{verb}", json.dumps(body).encode(), timeout=API_SECONDS)
    document = json.loads(answer.data)
    if "error" in document:
        raise ValueError(document["error"]["description"])
    return document


async def ignored(error: Exception) -> None:
    """The server may be killed at any moment."""
