"""The search for the sample at fault: halves, proof by others, and what has no proof."""

from dataclasses import dataclass, field

from tuneloop.learner.batching.batch import Batch
from tuneloop.learner.fault_search import FaultSearch, keys_of
from tuneloop.learner.samples import ScoredGroup, ScoredSample, ThumbSample, TokenSequence

SEQUENCE = TokenSequence(
    prompt_token_ids=(1,), completion_token_ids=(2,), generation_logprobs=(), temperature=1.0
)


@dataclass
class Service:
    """Samples in a queue, and a trainer that fails on some of them."""

    waiting: list[str]
    bad: set[str] = field(default_factory=set)
    too_large: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    steps: int = 0
    now: float = 0.0

    def __post_init__(self) -> None:
        self.search = FaultSearch(clock=lambda: self.now)

    def turn(self) -> None:
        self.now += 1
        self.search.release()
        aside = self.search.excluded_ids("kto")
        names = [name for name in self.waiting if name not in aside][: self.search.limit or 16]
        if not names:
            return
        self.steps += 1
        batch = batch_of(*names)
        if self.bad.isdisjoint(names) and self.too_large.isdisjoint(names):
            self.search.note_success(batch)
            self.used += names
        else:
            too_large = self.bad.isdisjoint(names)
            found = self.search.note_failure(batch, "it fails", too_large=too_large)
            self.refused += [refusal.sample_id for refusal in found]
        self.waiting = [n for n in self.waiting if n not in self.used + self.refused]


def batch_of(*names: str) -> Batch:
    thumbs = [ThumbSample(sample_id=n, sequence=SEQUENCE, desirable=True) for n in names]
    return Batch(samples={"kto": thumbs})


def names(count: int) -> list[str]:
    return [f"{n:02}" for n in range(count)]


def test_one_of_sixteen_is_found_wherever_it_is() -> None:
    for place in range(16):
        service = Service(names(16), bad={f"{place:02}"})
        for _ in range(40):
            service.turn()
        assert service.refused == [f"{place:02}"]
        assert len(service.used) == 15
        assert service.steps <= 20


def test_several_are_found() -> None:
    bad = {"00", "01", "07", "30", "31"}
    service = Service(names(40), bad=set(bad))
    for _ in range(120):
        service.turn()
    assert sorted(service.refused) == sorted(bad)
    assert len(service.used) == 35


def test_while_everything_fails_nothing_is_refused_and_pauses_grow() -> None:
    service = Service(names(16), bad=set(names(16)))
    for _ in range(720):
        service.turn()
    before = service.steps
    for _ in range(60):
        service.turn()
    assert service.refused == []
    # After the first rounds each sample is tried once a minute.
    assert service.steps - before <= 16
    service.bad = set()
    service.now += 60
    for _ in range(3):
        service.turn()
    assert len(service.used) == 16


def test_a_sample_that_comes_alone_is_refused_after_four_tries_but_only_one() -> None:
    service = Service(["a"], bad={"a", "b"})
    while service.waiting:
        service.turn()
    # At 1, 2, 4 and 8 seconds.
    assert (service.steps, service.now) == (4, 8)
    service.waiting = ["b"]
    for _ in range(600):
        service.turn()
    assert service.refused == ["a"]
    # A step that succeeds shows that the fault is the sample's.
    service.waiting.append("c")
    for _ in range(120):
        service.turn()
    assert (service.refused, service.used) == (["a", "b"], ["c"])


def test_what_there_is_no_memory_for_is_never_refused_and_holds_up_nobody() -> None:
    service = Service(names(16), too_large={"03"})
    for _ in range(300):
        service.turn()
    assert (service.refused, service.waiting) == ([], ["03"])
    assert service.steps < 40
    service.too_large = set()
    service.now += 60
    service.turn()
    assert len(service.used) == 16


def test_replays_of_a_step_that_failed_are_not_replayed_again() -> None:
    search = FaultSearch(clock=lambda: 0.0)
    fresh, old = batch_of("new").samples["kto"], batch_of("old").samples["kto"]
    batch = Batch(samples={"kto": [*fresh, *old]}, replayed={"kto": ["old"]})
    assert search.note_failure(batch, "it fails") == []
    assert search.excluded_ids("kto") == ["old"]
    search.note_success(batch_of("new"))
    assert (search.limit, search.excluded_ids("kto")) == (None, ["old"])


def test_a_group_is_named_by_its_members() -> None:
    member = ScoredSample(
        sample_id="m1", sequence=SEQUENCE, reward=1.0, policy_version=0, stopped=True
    )
    group = ScoredGroup(sample_id="g", samples=(member,), baseline=0.0)
    assert keys_of(Batch(samples={"grpo": [group]})) == [("grpo", "m1")]
