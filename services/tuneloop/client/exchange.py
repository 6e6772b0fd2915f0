"""One call with its retries, without I/O: a generator that either client runs.

It yields a request to send, or seconds to wait; it is sent the response (None after a wait) or the
error of the transport, and returns the response that is a success.
"""

from collections.abc import Generator

import httpx

from tuneloop.client.exceptions import (
    NEVER_AGAIN,
    error_from_response,
    error_from_transport,
    pause_before_retry,
)

Step = httpx.Request | float
Reply = httpx.Response | httpx.TransportError | None


def exchange(request: httpx.Request, max_retries: int) -> Generator[Step, Reply, httpx.Response]:
    """Send `request` until it succeeds. Raises `TuneloopError` when it does not.

    The request carries an `Idempotency-Key` wherever doing it twice would make a difference.
    """
    attempt = 0
    while True:
        reply = yield request
        again = attempt < max_retries
        if isinstance(reply, httpx.TransportError):
            again = again and not isinstance(reply, NEVER_AGAIN)
            error = error_from_transport(origin(request.url), reply)
        else:
            assert reply is not None
            if reply.is_success:
                return reply
            error = error_from_response(reply)
        pause = pause_before_retry(attempt, error) if again else None
        if pause is None:
            cause = reply if isinstance(reply, httpx.TransportError) else None
            raise error from cause
        yield pause
        attempt += 1


def origin(url: httpx.URL) -> str:
    """Return scheme, host and port of a URL."""
    return str(url.copy_with(path="/", query=None)).rstrip("/")
