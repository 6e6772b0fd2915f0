"""What an answer costs its key, charged while it is made."""

from collections.abc import Sequence
from contextvars import ContextVar

from tuneloop.gateway.edge.limits import Meter
from tuneloop.v1 import generation_pb2

BYTES_PER_TOKEN = 4

meter_of_request: ContextVar[Meter | None] = ContextVar("meter_of_request", default=None)
"""Of the request that runs now, where its key has limits. It follows into the tasks that a request
starts, so that what is far below can be charged without handing the meter through every call."""


class Spending:
    """The account of one answer; without a meter it does nothing."""

    def __init__(self, requests: Sequence[generation_pb2.GenerateRequest], n: int) -> None:
        self.meter = meter_of_request.get()
        self.requests = requests
        self.n = n
        self.streamed = [0] * (n * len(requests))
        """Tokens of each choice so far."""
        self.told: set[int] = set()
        """Requests whose prompt's length is known, and charged."""

    def note(self, choice: int, event: generation_pb2.GenerateResponse) -> None:
        """Charge what an event shows."""
        if self.meter is None:
            return
        if event.WhichOneof("event") == "delta":
            tokens = len(event.delta.token_ids)
            self.streamed[choice] += tokens
        else:
            usage = event.final.usage
            # A stop string's tokens are counted, and never streamed.
            tokens = max(0, usage.completion_tokens - self.streamed[choice])
            if choice // self.n not in self.told:
                self.told.add(choice // self.n)
                tokens += usage.prompt_tokens
        self.meter.charge(tokens)

    def leave(self) -> None:
        """The client went away: charge prompts of which no length was told by their bytes."""
        if self.meter is not None:
            untold = (r for i, r in enumerate(self.requests) if i not in self.told)
            self.meter.charge(sum(r.ByteSize() for r in untold) // BYTES_PER_TOKEN)
