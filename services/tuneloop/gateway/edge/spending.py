"""Charges the tokens of an answer to its key, while it is sampled."""

from collections.abc import Sequence
from contextvars import ContextVar

from tuneloop.gateway.edge.limits import Meter
from tuneloop.v1 import generation_pb2

BYTES_PER_TOKEN = 4

meter_of_request: ContextVar[Meter | None] = ContextVar("meter_of_request", default=None)
"""The meter of the current request, if its key has limits. Tasks that it starts inherit it,
so that code far below can charge tokens without passing the meter through every call."""


class Spending:
    """The tokens of one answer; without a meter it does nothing."""

    def __init__(self, requests: Sequence[generation_pb2.GenerateRequest], n: int) -> None:
        self.meter = meter_of_request.get()
        self.requests = requests
        self.n = n
        self.streamed = [0] * (n * len(requests))
        """Tokens of each choice so far."""
        self.told: set[int] = set()
        """Requests whose prompt was charged."""

    def note(self, choice: int, event: generation_pb2.GenerateResponse) -> None:
        """Charge the tokens of an event."""
        if self.meter is None:
            return
        if event.WhichOneof("event") == "delta":
            tokens = len(event.delta.token_ids)
            self.streamed[choice] += tokens
        else:
            usage = event.final.usage
            # The tokens of a stop string are counted but never streamed.
            tokens = max(0, usage.completion_tokens - self.streamed[choice])
            if choice // self.n not in self.told:
                self.told.add(choice // self.n)
                tokens += usage.prompt_tokens
        self.meter.charge(tokens)

    def leave(self) -> None:
        """The client disconnected: charge prompts of unknown length by their bytes."""
        if self.meter is not None:
            untold = (r for i, r in enumerate(self.requests) if i not in self.told)
            self.meter.charge(sum(r.ByteSize() for r in untold) // BYTES_PER_TOKEN)
