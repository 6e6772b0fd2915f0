"""Who gets the places for completions when several callers want them."""

from contextlib import ExitStack

import pytest

from tuneloop.errors import Overloaded
from tuneloop.generation.slots import OTHERS_SECONDS, Slots


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def fill(slots: Slots, stack: ExitStack, caller: str, completions: int = 1) -> int:
    """Take places until one is refused; return how many were taken."""
    taken = 0
    while True:
        try:
            stack.enter_context(slots.take(caller, completions))
        except Overloaded:
            return taken
        taken += completions


def test_a_caller_alone_takes_everything_and_gives_it_back() -> None:
    slots = Slots(10, Clock())
    with ExitStack() as stack:
        assert fill(slots, stack, "a") == 10
        assert slots.running == 10
    assert slots.running == 0


def test_with_others_there_is_room_left() -> None:
    slots = Slots(100, Clock())
    with ExitStack() as stack:
        stack.enter_context(slots.take("modest", 1))
        # 79 <= 4 * (100 - 1 - 79), and 80 > 4 * (100 - 1 - 80).
        assert fill(slots, stack, "greedy") == 79
        with pytest.raises(Overloaded, match="79 completions of this caller are running"):
            slots.check("greedy", 1)
        slots.check("newcomer", 20)
        with pytest.raises(Overloaded, match="80 completions are running, at most 100"):
            slots.check("newcomer", 21)


def test_who_had_everything_makes_room_when_another_asks() -> None:
    clock = Clock()
    slots = Slots(10, clock)
    with ExitStack() as stack:
        assert fill(slots, stack, "greedy") == 9 + 1
        with pytest.raises(Overloaded, match="10 completions are running"):
            slots.check("modest", 1)
    with ExitStack() as stack:
        assert fill(slots, stack, "greedy") == 8
        clock.now += OTHERS_SECONDS
        assert fill(slots, stack, "greedy") == 2


def test_the_first_request_of_a_caller_may_take_what_is_free() -> None:
    slots = Slots(4, Clock())
    with ExitStack() as stack:
        stack.enter_context(slots.take("a", 1))
        stack.enter_context(slots.take("b", 3))
    with ExitStack() as stack:
        stack.enter_context(Slots(1, Clock()).take("a", 1))
