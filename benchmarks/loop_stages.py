"""The stages of `benchmarks.loop`: from vLLM's own server to all of tuneloop, a part at a time."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.loop_servers import Servers

PUBLISHING_SECONDS = 1.0
"""What is stored after an answer is stored by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What answers the load, and what else works meanwhile."""

    name: str
    title: str
    server: str
    """Which of the servers is asked; see `loop_servers`."""
    protocol: str = "http"
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of the request's body."""
    train: bool = False
    """Whether the answers are stored as rollouts."""
    paused: tuple[str, ...] = ()
    """Processes of the service that are stopped meanwhile."""


LORA = {"model": "adapter"}
LOGPROBS = {"logprobs": True, "top_logprobs": 0}
BARE, WITH_LOGPROBS, WHOLE, BEFORE = "vllm", "logprobs", "learner", "before"
CONSUMERS = ("reward", "learner")

STAGES = (
    Stage(name=BARE, title="vLLM's own server", server="vllm"),
    Stage(name="adapter", title="+ the adapter", server="vllm with adapter", fields=LORA),
    Stage(
        name=WITH_LOGPROBS,
        title="+ log-probs",
        server="vllm with adapter",
        fields=LORA | LOGPROBS,
    ),
    Stage(name="engine", title="our engine, in its load's process", server="engine"),
    Stage(
        name="grpc",
        title="generation service, gRPC",
        server="service",
        protocol="grpc",
        paused=CONSUMERS,
    ),
    Stage(name="gateway", title="+ gateway, HTTP", server="service", paused=CONSUMERS),
    Stage(
        name="rollouts",
        title="+ rollouts stored",
        server="service",
        train=True,
        paused=CONSUMERS,
    ),
    Stage(name="scoring", title="+ scoring", server="service", train=True, paused=("learner",)),
    Stage(name=WHOLE, title="+ learner", server="service", train=True),
    Stage(name=BEFORE, title="the commit before, all of it", server=BEFORE, train=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much is asked."""

    streams: int
    chats: int
    """Of each stream."""
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One load through one stage."""

    round: int
    stage: str
    streams: int
    tokens: int
    requests: int
    seconds: float
    failed: int
    first_token_seconds_p50: float
    cpu_seconds: Mapping[str, float]
    """By process, until the last token."""
    cpu_seconds_after: Mapping[str, float]
    """By process, for what was left to do then: scoring and recording."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def cpu_seconds_per_1000_tokens(self) -> dict[str, float]:
        """By process, with what was left to do."""
        both = (self.cpu_seconds, self.cpu_seconds_after)
        return {
            name: sum(part.get(name, 0.0) for part in both) * 1000 / self.tokens
            for name in self.cpu_seconds
        }


def measure(servers: "Servers", stage: Stage, load: Load, number: int) -> Measure:
    """Run the load once. Raises `RuntimeError` if nothing was answered."""
    requests = load.streams * load.chats
    with servers.paused(stage, stage.paused):
        before = servers.cpu_seconds(stage)
        seen = servers.ask(
            stage, streams=load.streams, requests=requests, max_tokens=load.max_tokens
        )
        ended = servers.cpu_seconds(stage)
        if stage.train:
            time.sleep(PUBLISHING_SECONDS)
            servers.wait_for_consumers(stage, stage.paused)
        settled = servers.cpu_seconds(stage)
    if stage.train and stage.paused:
        servers.wait_for_consumers(stage)
    if not seen.tokens:
        raise RuntimeError(f"{stage.title}: no token came of {requests} requests")
    return Measure(
        round=number,
        stage=stage.name,
        streams=load.streams,
        tokens=seen.tokens,
        requests=requests,
        seconds=seen.seconds,
        failed=seen.failed,
        first_token_seconds_p50=seen.first_token_seconds_p50,
        cpu_seconds=difference(ended, before),
        # The load only polls by then.
        cpu_seconds_after=difference(settled, ended) | {"load": 0.0},
    )


def difference(later: Mapping[str, float], earlier: Mapping[str, float]) -> dict[str, float]:
    return {name: later[name] - earlier[name] for name in later}


@dataclass(slots=True)
class Record:
    """What a run has so far, in a file that a run that was cut short continues."""

    path: Path
    head: Mapping[str, Any]
    """What has to be the same for a run to be continued."""
    measures: list[Measure] = field(default_factory=list)
    feedback_seconds: list[float] = field(default_factory=list)

    def load(self) -> None:
        """Read the file, if it is of the same run."""
        if not self.path.is_file():
            return
        document = json.loads(self.path.read_text())
        if document["head"] == dict(self.head):
            self.measures = [Measure(**row) for row in document["measures"]]
            self.feedback_seconds = document["feedback_seconds"]

    def save(self) -> None:
        document = {
            "head": self.head,
            "measures": [asdict(measure) for measure in self.measures],
            "feedback_seconds": self.feedback_seconds,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(document, indent=1) + "\n")

    def has(self, number: int, streams: int, stage: str) -> bool:
        return any((m.round, m.streams, m.stage) == (number, streams, stage) for m in self.measures)


def missing(
    record: Record, stages: Sequence[Stage], loads: Sequence[Load], rounds: int
) -> list[tuple[int, Load, Stage]]:
    """Return what is to be measured, in order: A B C, C B A, …, so that drift cancels out."""
    return [
        (number, load, stage)
        for number in range(rounds)
        for load in loads
        for stage in (stages if number % 2 == 0 else reversed(stages))
        if not record.has(number, load.streams, stage.name)
    ]


def measure_missing(
    servers: "Servers",
    record: Record,
    todo: Iterable[tuple[int, Load, Stage]],
    say: Callable[[str], None],
) -> None:
    """Measure each and keep it at once; each stage is warmed up first at each load."""
    warm = set()
    for number, load, stage in todo:
        if (load.streams, stage.name) not in warm:
            warm.add((load.streams, stage.name))
            servers.ask(
                stage,
                streams=load.streams,
                requests=load.streams,
                max_tokens=min(16, load.max_tokens),
            )
            servers.wait_for_consumers(stage)
        done = measure(servers, stage, load, number)
        record.measures.append(done)
        record.save()
        cpu = sum(done.cpu_seconds_per_1000_tokens.values())
        say(
            f"round {number + 1}, {load.streams} streams, {stage.title}: "
            f"{done.tokens_per_second:.1f} tokens/s, {cpu:.2f} CPU s per 1,000 tokens"
        )
