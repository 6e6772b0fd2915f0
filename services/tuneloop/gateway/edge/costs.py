"""What answers cost by the prices in settings: by day, API key, policy and version.

As with quotas, every gateway counts by itself and adds to the day's entry in the bus's routing
table every few seconds, by compare-and-set; see `quotas` for what that may lose. Days have a fixed
number of entries, as the table deletes none: that of a day is used again `DAYS` days later.
"""

import contextlib
import json
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass

from tuneloop.bus import Bus, RoutingEntry, subjects
from tuneloop.errors import Conflict
from tuneloop.gateway import metrics
from tuneloop.gateway.edge.quotas import today
from tuneloop.gateway.settings import Price

DAYS = 31
"""How many days are kept, today included."""
VERSIONS = 20
"""How many versions have a metric: each is made of as many series as there are keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spender:
    """Whose tokens, and of which version."""

    key: str
    """Name of an API key; `local` without one."""
    policy: str
    policy_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Tokens and what they cost."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """Return the sum of both."""
        return Cost(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost=self.cost + other.cost,
        )


Spent = dict[Spender, Cost]


class Costs:
    """The costs of one policy's answers; without a price it counts nothing."""

    def __init__(self, policy: str, price: Price | None, day: Callable[[], int] = today) -> None:
        self.policy = policy
        self.price = price
        self._day = day
        self._new: defaultdict[int, Spent] = defaultdict(dict)
        """By day, what is not stored yet."""
        self._versions: OrderedDict[int, set[str]] = OrderedDict()
        """Keys by version that have a metric, the version used last at the end."""

    def add(
        self, key: str, policy_version: int, *, input_tokens: int = 0, output_tokens: int = 0
    ) -> None:
        """Count tokens."""
        if self.price is None:
            return
        spender = Spender(key=key, policy=self.policy, policy_version=policy_version)
        cost = Cost(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cost=self.price.cost(input_tokens, output_tokens),
        )
        spent = self._new[self._day()]
        spent[spender] = spent.get(spender, Cost()) + cost
        metrics.cost.labels(self.policy, str(policy_version), key).inc(cost.cost)
        self._versions.setdefault(policy_version, set()).add(key)
        self._versions.move_to_end(policy_version)
        while len(self._versions) > VERSIONS:
            oldest, keys = self._versions.popitem(last=False)
            for name in keys:
                metrics.cost.remove(self.policy, str(oldest), name)

    async def flush(self, bus: Bus) -> None:
        """Write what is new. Raises `Unavailable`."""
        while self._new:
            day, new = self._new.popitem()
            try:
                await add_to_day(bus, day, new)
            except BaseException:
                self._new[day] = merge(self._new[day], new)
                raise

    async def read(self, bus: Bus, days: int) -> list[tuple[int, Spender, Cost]]:
        """Return what all gateways stored of the last days, newest first. Raises `Unavailable`."""
        await self.flush(bus)
        last = self._day()
        found = []
        for day in range(last, last - min(days, DAYS), -1):
            spent = stored(await bus.routing(key_of(day)), day)
            found += [(day, spender, cost) for spender, cost in spent.items()]
        return found


def key_of(day: int) -> str:
    return subjects.costs_key(day % DAYS)


async def add_to_day(bus: Bus, day: int, new: Spent) -> None:
    """Add to the entry of a day, as other gateways do. Raises `Unavailable`."""
    while True:
        entry = await bus.routing(key_of(day))
        document = document_of(day, merge(stored(entry, day), new))
        revision = None if entry is None else entry.revision
        with contextlib.suppress(Conflict):
            await bus.set_routing(key_of(day), document, revision=revision)
            return


def merge(one: Spent, other: Spent) -> Spent:
    """Return the sum of both."""
    return one | {s: one.get(s, Cost()) + cost for s, cost in other.items()}


def stored(entry: RoutingEntry | None, day: int) -> Spent:
    """Return what an entry has of a day: nothing if it is of an earlier one."""
    if entry is None or (document := json.loads(entry.value))["day"] != day:
        return {}
    return {Spender(**row["by"]): Cost(**row["used"]) for row in document["rows"]}


def document_of(day: int, spent: Spent) -> bytes:
    """Return the document to store."""
    rows = [{"by": asdict(spender), "used": asdict(cost)} for spender, cost in spent.items()]
    return json.dumps({"day": day, "rows": rows}).encode()
