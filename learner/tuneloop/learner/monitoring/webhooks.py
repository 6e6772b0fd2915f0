"""Webhooks: tell the operator's own URLs of versions and alarms, signed, at least once, in order.

Requests are those of Standard Webhooks (https://www.standardwebhooks.com), so that its libraries
verify them. Each receiver has a task and a position in the ledger of its own: one that is slow or
away holds up no other, and nothing that the learner does. What is committed is told, though the
learner is killed in between; a receiver may get the same notice twice, with the same id.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable, Sequence

import httpx

from tuneloop.backoff import Backoff
from tuneloop.host import steady_time
from tuneloop.learner import metrics
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.reports import notices
from tuneloop.learner.ledger.reports.notices import Notice, Position
from tuneloop.learner.monitoring.settings import WebhookSettings, shown

logger = logging.getLogger("tuneloop.learner.monitoring")

EVERY_SECONDS = 1.0
ATTEMPT_SECONDS = 15.0
"""Longest wait for an answer, as Standard Webhooks recommends."""
FIRST_SECONDS = 2.0
LONGEST_SECONDS = 300.0
GIVE_UP_SECONDS = 86_400.0
"""Age at which a notice that cannot be delivered is given up; each is tried once."""


class Webhook:
    """One receiver."""

    def __init__(
        self,
        url: str,
        keys: Sequence[bytes],
        database: Database,
        policy: str,
        *,
        give_up_seconds: float = GIVE_UP_SECONDS,
        first_seconds: float = FIRST_SECONDS,
        attempt_seconds: float = ATTEMPT_SECONDS,
        clock: Callable[[], float] = steady_time,
    ) -> None:
        """`keys` sign each request, all of them; `clock` is that of the ledger's times."""
        self.receiver = receiver_of(url)
        self._url = url
        self._name = shown(url)
        self._keys = keys
        self._database = database
        self._policy = policy
        self._give_up_seconds = give_up_seconds
        self._first_seconds = first_seconds
        self._attempt_seconds = attempt_seconds
        self._clock = clock

    async def run(self) -> None:
        """Tell what happens until cancelled. Raises `Unavailable` if the ledger is."""
        position = await asyncio.to_thread(self._start)
        async with httpx.AsyncClient(timeout=self._attempt_seconds) as client:
            while True:
                notice = await asyncio.to_thread(
                    notices.next_notice, self._database, self._policy, position
                )
                if notice is None:
                    await asyncio.sleep(EVERY_SECONDS)
                    continue
                await self._deliver(client, notice)
                position = notice.after
                await asyncio.to_thread(
                    notices.save_position, self._database, self.receiver, position
                )

    def _start(self) -> Position:
        """Return where it goes on; a new receiver is told what happens from now on."""
        found = notices.load_position(self._database, self.receiver)
        if found is None:
            found = notices.newest_position(self._database)
            notices.save_position(self._database, self.receiver, found)
        return found

    async def _deliver(self, client: httpx.AsyncClient, notice: Notice) -> None:
        """Send a notice until it is accepted or given up."""
        backoff = Backoff(self._first_seconds, LONGEST_SECONDS)
        told = f"webhook {self._name}: {notice.event['type']} ({notice.id})"
        while problem := await self._send(client, notice):
            if self._clock() - notice.time >= self._give_up_seconds:
                metrics.webhook_attempts.labels("given_up").inc()
                logger.error("%s is given up: %s", told, problem)
                return
            metrics.webhook_attempts.labels("failed").inc()
            delay = backoff.next_delay()
            logger.warning("%s: %s; trying again in %.0f s", told, problem, delay)
            await asyncio.sleep(delay)
        metrics.webhook_attempts.labels("delivered").inc()
        logger.info("%s: delivered", told)

    async def _send(self, client: httpx.AsyncClient, notice: Notice) -> str:
        """Try once; return what went wrong, or an empty string."""
        body = json.dumps(notice.event, separators=(",", ":")).encode()
        headers = signed_headers(notice.id, int(time.time()), body, self._keys)
        try:
            async with (
                asyncio.timeout(self._attempt_seconds),
                # The status is all that is read, and a redirect is none of success.
                client.stream("POST", self._url, content=body, headers=headers) as response,
            ):
                status = response.status_code
        except TimeoutError:
            return f"no answer within {self._attempt_seconds:.0f} s"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return "" if httpx.codes.is_success(status) else f"answered {status}"


def make_webhooks(settings: WebhookSettings, policy: str, database: Database) -> list[Webhook]:
    """Make the receivers of the settings; those that are not among them are forgotten."""
    keys = settings.webhook_keys()
    urls = dict.fromkeys(settings.webhook_urls)
    webhooks = [Webhook(url, keys, database, policy) for url in urls]
    notices.forget_receivers(database, but=[webhook.receiver for webhook in webhooks])
    return webhooks


def receiver_of(url: str) -> str:
    """Return what names a receiver in the ledger, which keeps no secret of its URL."""
    return hashlib.sha256(url.encode()).hexdigest()[:32]


def signed_headers(
    message_id: str, timestamp: int, body: bytes, keys: Sequence[bytes]
) -> dict[str, str]:
    """Return the headers of a request, with a signature by each key.

    v1 is base64(HMAC-SHA256(key, "id.timestamp.body")), by the Standard Webhooks specification 1.0.
    """
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    signatures = [base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys]
    return {
        "content-type": "application/json",
        "user-agent": "tuneloop",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
