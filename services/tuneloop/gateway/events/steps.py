"""Loss and KL of the last optimizer steps, from the learner's events on the bus."""

from typing import Any

from tuneloop import wire
from tuneloop.bus import Bus, subjects

SHOWN = 200
FIGURES = ("loss", "kl")


class StepHistory:
    """The last steps; each event is read once, in the order they were stored."""

    def __init__(self, bus: Bus, policy: str) -> None:
        self._bus = bus
        self._subject = subjects.learner_step(policy)
        self._sequence: int | None = None
        self._steps: list[dict[str, Any]] = []

    async def latest(self) -> dict[str, Any]:
        """The steps, oldest first; raises `Unavailable` while the bus is away."""
        newest = await self._bus.last(self._subject)
        if newest is None:
            self._steps = []
            return self._document()
        if self._sequence is None or newest.sequence < self._sequence:
            # The first time, and after a bus with other data came back.
            self._steps, self._sequence = [], max(0, newest.sequence - SHOWN)
        while self._sequence < newest.sequence:
            event = await self._bus.first_after(self._subject, self._sequence)
            if event is None:
                break
            self._sequence = event.sequence
            stepped = wire.decode_learner_stepped(event.data)
            figures = {name: stepped.metrics.get(name) for name in FIGURES}
            self._steps.append(
                {"step": stepped.step, "time": stepped.stepped_time.isoformat(), **figures}
            )
        del self._steps[:-SHOWN]
        return self._document()

    def _document(self) -> dict[str, Any]:
        return {"object": "list", "data": list(self._steps)}
