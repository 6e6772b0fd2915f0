"""Feedback of every sort against a simple model: HTTP to stream to ledger, in any order.

The gateway's application, the bus in memory, the learner's own intake and a SQLite ledger; what is
accepted, refused, repeated, retracted, expired, delivered late, early, twice or cut off in the
middle must end in exactly the rows that `feedback_model` says.
"""

import asyncio
import json
import random
import tempfile
import time
from itertools import permutations
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from sqlalchemy import select
from support.feedback_model import Given, Key, LedgerModel
from support.gateway_fakes import IDS, SECRET
from support.learner_events import edit_tokens, make_rollout
from support.ports import free_port

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.bus.memory import MemoryBus
from tuneloop.errors import CorruptData
from tuneloop.feedback import Retraction
from tuneloop.gateway.app import create_app
from tuneloop.gateway.completion_ids import CompletionIds
from tuneloop.gateway.settings import GatewaySettings
from tuneloop.learner.intake.consumers import IntakeConsumer, make_consumers
from tuneloop.learner.ledger.accounting import steps
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import lifecycle
from tuneloop.learner.ledger.events.sample_rules import SampleRules
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.schema import feedback, retractions, rollouts, samples, uses
from tuneloop.rollouts import choice_id

OBJECTIVES = ("sft", "kto", "dpo", "sdft", "reward_model")
HASHES = {user: IDS.user_hash("default", user) for user in ("ann", "bob")}
PAIR = IDS.make("chatcmpl", "default", HASHES["ann"], 2)
SINGLE = IDS.make("cmpl", "default", HASHES["bob"])
COMPLETIONS = (PAIR, choice_id(PAIR, 1), SINGLE)
SIBLINGS = {PAIR, choice_id(PAIR, 1)}
FOREIGN = CompletionIds(b"another gateway's secret").make("chatcmpl", "default", HASHES["ann"])
FORGED = f"{PAIR[:-1]}{'0' if PAIR[-1] != '0' else '1'}"
MAX_BODY = 65_536
WAIT_DAYS = 7.0
DAY = 86_400.0
START = 1_800_000_000.0


def judgements() -> list[dict[str, Any]]:
    """All there is to say; what has most to do with each other more often."""
    said: list[dict[str, Any]] = []
    for about in COMPLETIONS:
        for kind, values in (("thumb", ("up", "down")), ("rating", (1, 4.5))):
            said += [{"kind": kind, "completion_id": about, "value": value} for value in values]
        for kind, texts in (("demonstration", ("A.", "B.")), ("comment", ("C.", "D."))):
            said += [{"kind": kind, "completion_id": about, "text": text} for text in texts]
        for measured in (True, 2.5):
            said.append(
                {"kind": "metric", "completion_id": about, "name": "figure", "value": measured}
            )
    for count in (2, 3):
        for ids in permutations(COMPLETIONS, count):
            said.append({"kind": "comparison", "chosen": ids[0], "rejected": list(ids[1:])})
            said.append({"kind": "ranking", "ranking": list(ids)})
    often = [body for body in said if body["kind"] in ("thumb", "comparison")]
    return said + often + [b for b in often if b.get("completion_id") in SIBLINGS]


JUDGEMENTS = judgements()


def some_body(source: random.Random) -> dict[str, Any]:
    body = source.choice(JUDGEMENTS) | {"user": source.choice(["ann", "ann", "bob"])}
    name = source.choice([None, None, None, "i0", "i1", "retracted"])
    return body if name is None else body | {"id": name}


THUMB = {"kind": "thumb", "completion_id": PAIR, "value": "up"}
refused: list[tuple[Any, int, str]] = [
    (THUMB | {"completion_id": FORGED}, 404, "completion_not_found"),
    (THUMB | {"completion_id": FOREIGN}, 404, "completion_not_found"),
    (THUMB | {"completion_id": f"{PAIR}.2"}, 404, "completion_not_found"),
    (THUMB | {"completion_id": f"{SINGLE}.1"}, 404, "completion_not_found"),
    ({"kind": "comparison", "chosen": PAIR, "rejected": [FOREIGN]}, 404, "completion_not_found"),
    ({"kind": "comparison", "chosen": PAIR, "rejected": [PAIR]}, 400, "invalid_request"),
    ({"kind": "ranking", "ranking": [PAIR, PAIR]}, 400, "invalid_request"),
    ({"kind": "smile", "completion_id": PAIR}, 400, "invalid_request"),
    (THUMB | {"value": "sideways"}, 400, "invalid_request"),
    (THUMB | {"id": "a.b"}, 400, "invalid_request"),
    (THUMB | {"colour": "red"}, 400, "invalid_request"),
    ({"kind": "comment", "completion_id": PAIR, "text": "x" * 40_000}, 400, "invalid_request"),
    ({"kind": "comment", "completion_id": PAIR, "text": "x" * 80_000}, 413, "body_too_large"),
    ([], 400, "invalid_request"),
]

# How often each thing happens, of which one rule does many: an example of many rules leaves most of
# them out, and what has to do with each other would seldom meet.
WEIGHTS = {
    "give": 12,
    "give_batch": 3,
    "give_while_the_bus_is_down": 1,
    "give_what_is_refused": 2,
    "retract": 5,
    "read": 1,
    "generate": 5,
    "deliver_feedback": 8,
    "deliver_rollouts": 3,
    "disturb": 1,
    "learn": 8,
    "go_back": 2,
    "wait": 1,
}


class Feedback(RuleBasedStateMachine):
    """What clients, the network and the clock can do."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.database = Database.at(Path(self.folder.name) / "ledger.db")
        self.bus = MemoryBus()
        self.day = 0.0
        consumers = make_consumers(
            self.database,
            "tuneloop",
            rules=SampleRules(comments_train=True),
            clock=lambda: START + self.day * DAY,
        )
        self.intakes = {intake.name: intake for intake in consumers}
        self.order: list[Given] = []
        """Accepted on the stream."""
        self.model = LedgerModel()
        self.spent: set[str] = set()
        """Ids of noise on the stream."""
        self.steps: list[list[Key]] = []

    @initialize()
    def start(self) -> None:
        # Nobody answers there, whatever else runs on this machine.
        settings = GatewaySettings(
            secret=SECRET, max_body_bytes=MAX_BODY, learner_address=f"127.0.0.1:{free_port()}"
        )
        app = create_app(settings, self.bus)
        self.lifespan = app.router.lifespan_context(app)
        self.run(self.lifespan.__aenter__())
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")

    def teardown(self) -> None:
        self.bus.come_back()
        self.run(self.http.aclose())
        self.run(self.lifespan.__aexit__(None, None, None))
        self.runner.close()
        self.database.close()
        self.folder.cleanup()

    def run(self, coroutine: Any) -> Any:
        async def run() -> Any:
            return await coroutine

        return self.runner.run(run())

    def request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        response: httpx.Response = self.run(self.http.request(method, path, json=body))
        return response

    @rule(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 40))
    def some_time_passes(self, seed: int, count: int) -> None:
        source = random.Random(seed)
        for name in source.choices([*WEIGHTS], [*WEIGHTS.values()], k=count):
            note(name)
            getattr(self, name)(source)
            self.check()

    # What clients do

    def expected(self, body: dict[str, Any]) -> tuple[int, str | None]:
        """Status and code, by what was accepted before."""
        if not self.bus.connected:
            return 503, "unavailable"
        earlier = next((given for given in self.order if given.id == body.get("id")), None)
        if earlier is None:
            return 202, None
        if earlier.retracted:
            return 409, "feedback_retracted"
        return (202, None) if earlier.body == body else (409, "conflict")

    def accept(self, body: dict[str, Any], feedback_id: str) -> None:
        if all(given.id != feedback_id for given in self.order):
            user = HASHES[body["user"]]
            self.order.append(Given(id=feedback_id, body=body, user=user))

    def give(self, source: random.Random) -> None:
        self.post(some_body(source))

    def post(self, body: dict[str, Any]) -> None:
        status, code = self.expected(body)
        response = self.request("POST", "/v1/feedback", body)
        assert response.status_code == status, response.text
        if code is not None:
            assert response.json()["error"]["code"] == code
            return
        assert response.json()["status"] == "accepted"
        self.accept(body, response.json()["id"])

    def give_batch(self, source: random.Random) -> None:
        batch = [some_body(source) for _ in range(source.randint(1, 4))]
        batch.insert(source.randint(0, len(batch)), source.choice(refused[:11])[0])
        response = self.request("POST", "/v1/feedback/batch", {"feedback": batch})
        data = response.json()["data"]
        assert len(data) == len(batch)
        wrong = {
            json.dumps(b): (status, code) for b, status, code in refused if isinstance(b, dict)
        }
        for body, answer in zip(batch, data, strict=True):
            status, code = wrong.get(json.dumps(body)) or self.expected(body)
            assert answer.get("status_code", 202) == status
            if code is None:
                self.accept(body, answer["id"])
            else:
                assert answer["error"]["code"] == code
        assert response.status_code == (207 if any("error" in a for a in data) else 202)

    def give_what_is_refused(self, source: random.Random) -> None:
        body, status, code = source.choice(refused)
        response = self.request("POST", "/v1/feedback", body)
        assert response.status_code == status, response.text
        assert response.json()["error"]["code"] == code

    def retract(self, source: random.Random) -> None:
        ids = [given.id for given in self.order]
        self.delete(source.choice([*ids, *ids, "i0", "i1", "retracted", "never"]))

    def delete(self, feedback_id: str) -> None:
        response = self.request("DELETE", f"/v1/feedback/{feedback_id}")
        found = next((given for given in self.order if given.id == feedback_id), None)
        if not self.bus.connected:
            assert response.status_code == 503
        elif found is None:
            # The stream no longer has all feedback, and the learner, which has, is not up.
            assert response.status_code == 503
        else:
            assert response.status_code == 200
            assert response.json() == {"id": feedback_id, "status": "retracted"}
            found.retracted = True

    def read(self, source: random.Random) -> None:
        if not self.order:
            return
        given = source.choice(self.order)
        document = self.request("GET", f"/v1/feedback/{given.id}").json()
        assert document["status"] == ("retracted" if given.retracted else "accepted")
        said = {k: v for k, v in given.body.items() if k not in ("user", "completion_id")}
        assert (said | {"id": given.id}).items() <= document.items()

    # What the network does

    def give_while_the_bus_is_down(self, source: random.Random) -> None:
        self.bus.go_down()
        self.give(source)
        self.retract(source)
        self.bus.come_back()

    def generate(self, source: random.Random) -> None:
        completion_id = source.choice(COMPLETIONS)
        siblings = completion_id in SIBLINGS
        rollout = make_rollout(
            completion_id,
            group_id="pair" if siblings else "single",
            user=HASHES["ann" if siblings else "bob"],
            text=f"Answer {COMPLETIONS.index(completion_id)}.",
            completion=(7, 8 + COMPLETIONS.index(completion_id), 2),
            n=2 if siblings else 1,
        )
        self.publish(
            subjects.rollout_generated("tuneloop", rollout.user_hash),
            wire.encode_rollout_generated(rollout),
            # A second event of one rollout, too.
            f"{completion_id}-{time.monotonic_ns()}",
        )

    def disturb(self, source: random.Random) -> None:
        """Bytes that are no event, from anyone who can reach the bus."""
        name, kind = source.choice(["n0", "n1"]), source.choice(["thumb", "retracted"])
        if name not in self.spent:
            self.spent.add(name)
            subject = subjects.feedback("tuneloop", kind, "someone", name)
            self.publish(subject, b"\xff" + source.randbytes(4), name)

    def publish(self, subject: str, data: bytes, event_id: str) -> None:
        self.run(self.bus.publish(subject, data, event_id=event_id))

    def deliver_feedback(self, source: random.Random) -> None:
        self.run(self.take_in(self.intakes["feedback"], source))

    def deliver_rollouts(self, source: random.Random) -> None:
        self.run(self.take_in(self.intakes["rollouts"], source))

    async def take_in(self, intake: IntakeConsumer, source: random.Random) -> None:
        """All or some of what waits, in any order; a crash keeps it from being acknowledged."""
        durable = f"learner-tuneloop-{intake.name}"
        consumer = await self.bus.consume(
            stream=intake.stream, durable=durable, subjects=[intake.subject], ack_wait=60.0
        )
        waiting = await consumer.fetch(256, 0.0)
        order = source.sample(range(len(waiting)), len(waiting))
        count = source.choice([len(waiting), len(waiting), len(waiting) // 2])
        for position in order[count:]:
            await waiting[position].nak()
        taken = [waiting[position] for position in order[:count]]
        if source.random() < 0.3:
            for delivery in taken:
                try:
                    event = intake.decode(delivery)
                except CorruptData:
                    continue
                intake.record([event])
                self.note(event)
            for delivery in taken:
                await delivery.nak()
            return
        for delivery in taken:
            try:
                self.note(intake.decode(delivery))
            except CorruptData:
                continue
        await intake.handle(self.bus, durable, taken)

    def note(self, event: Any) -> None:
        """Tell the model what the ledger was told."""
        if isinstance(event, tuple):
            known = {given.id: given for given in self.order}
            said = event[0]
            if isinstance(said, Retraction):
                self.model.retracted.add(said.feedback_id)
            else:
                self.model.record(known[said.feedback_id], self.day)
        else:
            self.model.rollouts.update(rollout.completion_id for rollout in event)

    # What the learner and the clock do

    def learn(self, source: random.Random) -> None:
        objective = source.choice(OBJECTIVES)
        taken, refusals = ready.take_samples(self.database, objective, 2, edit_tokens=edit_tokens)
        assert refusals == []
        if not taken:
            return
        ids = [sample.sample_id for sample in taken]
        step = steps.Step(
            step=len(self.steps) + 1, samples={objective: ids}, skipped=False, metrics={}
        )
        steps.commit_steps(self.database, "policy", [step], f"step-{step.step}", START)
        self.steps.append([(sample_id, objective) for sample_id in ids])
        self.model.used += self.steps[-1]

    def go_back(self, _: random.Random) -> None:
        if not self.steps:
            return
        undone = self.steps.pop()
        steps.roll_back(self.database, "policy", len(self.steps), START)
        self.model.used = [key for key in self.model.used if key not in undone]

    def wait(self, source: random.Random) -> None:
        self.day += source.choice([1.0, 8.0])
        lifecycle.expire_feedback(
            self.database, START + self.day * DAY, max_age=None, rollout_wait=WAIT_DAYS * DAY
        )
        self.model.expire(self.order, self.day, WAIT_DAYS)

    # What must hold

    def check(self) -> None:
        self.the_stream_holds_what_was_acknowledged()
        self.the_ledger_holds_what_the_model_says()
        self.what_can_be_learned_from_is_what_the_model_says()

    def the_stream_holds_what_was_acknowledged(self) -> None:
        events = self.bus.streams[subjects.FEEDBACK].events
        retracted = sum(given.retracted for given in self.order)
        assert len(events) == len(self.order) + retracted + len(self.spent)

    def the_ledger_holds_what_the_model_says(self) -> None:
        with self.database.read() as connection:
            told = connection.execute(select(feedback.c.feedback_id, feedback.c.status)).all()
            taken_back = set(connection.execute(select(retractions.c.feedback_id)).scalars())
            known = set(connection.execute(select(rollouts.c.completion_id)).scalars())
            rows = connection.execute(select(samples)).all()
            used = connection.execute(select(uses.c.sample_id, uses.c.objective)).all()
        assert {row[0]: row[1] for row in told} == self.model.statuses(self.order)
        assert taken_back == self.model.retracted
        assert known == self.model.rollouts
        states = {(r.sample_id, r.objective): r.state for r in rows if r.kind != "siblings"}
        assert states == self.model.states(self.order)
        assert sorted(map(tuple, used)) == sorted(self.model.used), "each use once, none lost"
        pairs = {
            (r.user_hash, r.completion_id, r.rejected_id)
            for r in rows
            if r.kind == "siblings" and r.current and r.state in ("open", "used")
        }
        assert pairs == self.model.siblings(self.order, SIBLINGS)

    def what_can_be_learned_from_is_what_the_model_says(self) -> None:
        query = ready.ready_samples(samples.c.sample_id, samples.c.objective).where(
            samples.c.state == "open", samples.c.kind != "siblings"
        )
        with self.database.read() as connection:
            found = {(row.sample_id, row.objective) for row in connection.execute(query)}
        assert found == self.model.ready(self.order)


quick = settings(
    max_examples=15,
    stateful_step_count=3,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


class TestFeedback(Feedback.TestCase):
    """The same steps each time."""

    settings = quick


@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestFeedbackAtLength(Feedback.TestCase):
    """Other steps each time, and many."""

    settings = settings(quick, max_examples=250, stateful_step_count=10, derandomize=False)
