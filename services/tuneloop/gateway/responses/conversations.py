"""Recent conversations of `/v1/responses`, which a request may continue by the id of a response.

A request may also name single items of their answers, in the place of sending them again.

They are in the memory of this process alone, bounded in bytes and in age: a gateway that restarted,
or another replica, knows nothing of them. Only the caller that a response was given to may name it.
"""

import asyncio
import sys
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile

from tuneloop.gateway.errors import ItemNotFound, PreviousResponseNotFound
from tuneloop.gateway.responses.items import InputItem
from tuneloop.text.messages import Message

MAX_BYTES = 64 * 2**20
"""Of all callers together; beyond that the caller with the most loses its oldest."""
MAX_SECONDS = 3600.0
CHECK_SECONDS = 60.0
MESSAGE_BYTES = 1024
"""A message without its text, and a conversation without its messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """The messages up to the end of a response, without its instructions."""

    messages: tuple[Message, ...]
    session_id: str
    user_hash: str
    """Of the user that the response was for."""
    items: Mapping[str, InputItem] = field(default_factory=dict)
    """The items of the response, by their ids."""

    @property
    def size(self) -> int:
        """Bytes of memory, about; what conversations share is counted in each."""
        items = MESSAGE_BYTES * len(self.items)
        return MESSAGE_BYTES + items + sum(map(size_of, self.messages))


def size_of(message: Message) -> int:
    """Return the bytes that a message takes, about."""
    calls = sum(
        MESSAGE_BYTES + sys.getsizeof(c.function.arguments) for c in message.tool_calls or ()
    )
    texts = sys.getsizeof(message.content) + sys.getsizeof(message.reasoning_content)
    return MESSAGE_BYTES + texts + calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A conversation, and when it was kept: monotonic seconds."""

    conversation: Conversation
    size: int
    at: float


class Conversations:
    """Conversations by caller and id of the response that they end with."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.of_caller: dict[str, OrderedDict[str, Kept]] = defaultdict(OrderedDict)
        """Oldest first."""
        self.sizes: Counter[str] = Counter()
        """Bytes by caller."""
        self.response_of_item: dict[tuple[str, str], str] = {}
        """Ids of responses by caller and id of one of their items."""

    def keep(self, caller: str, response_id: str, conversation: Conversation) -> None:
        """Keep a conversation for a while, or as long as there is room."""
        kept = Kept(conversation=conversation, size=conversation.size, at=self.clock())
        self.of_caller[caller][response_id] = kept
        self.sizes[caller] += kept.size
        for item_id in conversation.items:
            self.response_of_item[caller, item_id] = response_id
        while self.sizes.total() > MAX_BYTES:
            largest = max(self.sizes, key=self.sizes.__getitem__)
            self.drop(largest, next(iter(self.of_caller[largest])))

    def find(self, caller: str, response_id: str) -> Conversation:
        """Return what a response ended. Raises `PreviousResponseNotFound`."""
        kept = self.of_caller[caller].get(response_id) if caller in self.of_caller else None
        if kept is None:
            raise PreviousResponseNotFound(
                f"no previous response {response_id[:100]!r} is known here: send the whole "
                "conversation in input",
                param="previous_response_id",
            )
        return kept.conversation

    def of_item(self, caller: str, item_id: str) -> Conversation:
        """Return the conversation that an item ended. Raises `ItemNotFound`."""
        response_id = self.response_of_item.get((caller, item_id))
        if response_id is None:
            raise ItemNotFound(
                f"no item {item_id[:100]!r} is known here: send the item itself in input",
                param="input",
            )
        return self.of_caller[caller][response_id].conversation

    def forget(self, matches: Callable[[Conversation], bool]) -> None:
        """Drop the conversations that match."""
        for caller, of_caller in list(self.of_caller.items()):
            for response_id in [i for i, kept in of_caller.items() if matches(kept.conversation)]:
                self.drop(caller, response_id)

    async def watch(self) -> None:
        """Drop what is old until cancelled."""
        while True:
            self.drop_old()
            await asyncio.sleep(CHECK_SECONDS)

    def drop_old(self) -> None:
        """Drop what was kept for long enough."""
        before = self.clock() - MAX_SECONDS
        for caller, of_caller in list(self.of_caller.items()):
            old = takewhile(lambda entry: entry[1].at < before, of_caller.items())
            for response_id, _ in list(old):
                self.drop(caller, response_id)

    def drop(self, caller: str, response_id: str) -> None:
        kept = self.of_caller[caller].pop(response_id)
        self.sizes[caller] -= kept.size
        for item_id in kept.conversation.items:
            del self.response_of_item[caller, item_id]
        if not self.of_caller[caller]:
            del self.of_caller[caller], self.sizes[caller]
