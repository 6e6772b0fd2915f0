"""Feedback of every sort against a simple model: HTTP to stream to ledger, in any order.

The gateway's application, the bus in memory, the learner's own intake and a SQLite ledger; what is
accepted, refused, repeated, retracted, expired, delivered late, early, twice or cut off in the
middle must end in exactly the rows that `feedback_model` says.
"""

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from feedback_model import Given, Key, LedgerModel
from gateway_fakes import IDS, SECRET
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from learner_events import edit_tokens, make_rollout
from sqlalchemy import select

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.bus.memory import MemoryBus
from tuneloop.gateway.app import create_app
from tuneloop.gateway.completion_ids import CompletionIds, choice_id
from tuneloop.gateway.settings import GatewaySettings
from tuneloop.learner.intake import Intake, intakes
from tuneloop.learner.ledger import ending, ready, steps
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.schema import feedback, retractions, rollouts, samples, uses

OBJECTIVES = ("sft", "kto", "dpo", "reward_model")
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

one = st.sampled_from(COMPLETIONS)
several = st.permutations(COMPLETIONS).flatmap(
    lambda ids: st.integers(2, len(ids)).map(lambda count: list(ids[:count]))
)
thumbs = st.fixed_dictionaries(
    {"kind": st.just("thumb"), "completion_id": one, "value": st.sampled_from(["up", "down"])}
)
comparisons = several.map(lambda ids: {"kind": "comparison", "chosen": ids[0], "rejected": ids[1:]})
texts = {"demonstration": ["Better.", "Best."], "comment": ["hm"]}
judgements = st.one_of(
    # Thumbs and pairs have most to do with each other.
    thumbs,
    thumbs,
    comparisons,
    several.map(lambda ids: {"kind": "ranking", "ranking": ids}),
    st.fixed_dictionaries(
        {"kind": st.just("rating"), "completion_id": one, "value": st.sampled_from([1, 4.5])}
    ),
    st.sampled_from([(kind, text) for kind in texts for text in texts[kind]]).flatmap(
        lambda said: one.map(
            lambda about: {"kind": said[0], "completion_id": about, "text": said[1]}
        )
    ),
)
chosen_ids = st.sampled_from([None, None, None, "i0", "i1", "retracted"])
bodies = st.builds(
    lambda body, user, name: body | {"user": user} | ({} if name is None else {"id": name}),
    judgements,
    st.sampled_from(("ann", "ann", "bob")),
    chosen_ids,
)
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

batches = st.lists(bodies | st.sampled_from([b for b, *_ in refused[:10]]), min_size=2, max_size=5)


class Feedback(RuleBasedStateMachine):
    """What clients, the network and the clock can do."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.database = Database.at(Path(self.folder.name) / "ledger.db")
        self.bus = MemoryBus()
        self.day = 0.0
        consumers = intakes(self.database, "tuneloop", clock=lambda: START + self.day * DAY)
        self.intakes = {intake.name: intake for intake in consumers}
        self.order: list[Given] = []
        """Accepted on the stream."""
        self.model = LedgerModel()
        self.spent: set[str] = set()
        """Ids of noise on the stream."""
        self.steps: list[list[Key]] = []

    @initialize()
    def start(self) -> None:
        app = create_app(GatewaySettings(secret=SECRET, max_body_bytes=MAX_BODY), self.bus)
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

    @rule(body=bodies)
    def give_one(self, body: dict[str, Any]) -> None:
        self.give(body)

    def give(self, body: dict[str, Any]) -> None:
        status, code = self.expected(body)
        response = self.request("POST", "/v1/feedback", body)
        assert response.status_code == status, response.text
        if code is not None:
            assert response.json()["error"]["code"] == code
            return
        assert response.json()["status"] == "accepted"
        self.accept(body, response.json()["id"])

    @rule(batch=batches)
    def give_batch(self, batch: list[dict[str, Any]]) -> None:
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

    @rule(bad=st.sampled_from(refused))
    def give_what_is_refused(self, bad: tuple[Any, int, str]) -> None:
        body, status, code = bad
        response = self.request("POST", "/v1/feedback", body)
        assert response.status_code == status, response.text
        assert response.json()["error"]["code"] == code

    @rule(feedback_id=st.sampled_from(["i0", "i1", "retracted", "never"]))
    def retract_by_name(self, feedback_id: str) -> None:
        self.retract(feedback_id)

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def retract_any(self, data: st.DataObject) -> None:
        self.retract(data.draw(st.sampled_from(self.order)).id)

    def retract(self, feedback_id: str) -> None:
        response = self.request("DELETE", f"/v1/feedback/{feedback_id}")
        found = next((given for given in self.order if given.id == feedback_id), None)
        if not self.bus.connected:
            assert response.status_code == 503
        elif found is None:
            assert response.status_code == 404
        else:
            assert response.status_code == 200
            assert response.json() == {"id": feedback_id, "status": "retracted"}
            found.retracted = True

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        given = data.draw(st.sampled_from(self.order))
        document = self.request("GET", f"/v1/feedback/{given.id}").json()
        assert document["status"] == ("retracted" if given.retracted else "accepted")
        said = {k: v for k, v in given.body.items() if k not in ("user", "completion_id")}
        assert (said | {"id": given.id}).items() <= document.items()

    # What the network does

    @rule(body=bodies)
    def give_while_the_bus_is_down(self, body: dict[str, Any]) -> None:
        self.bus.go_down()
        self.give(body)
        for given in self.order[:1]:
            self.retract(given.id)
        self.bus.come_back()

    @rule(completion_id=one)
    def generate(self, completion_id: str) -> None:
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

    @rule(
        noise=st.binary(max_size=20),
        name=st.sampled_from(["n0", "n1"]),
        kind=st.sampled_from(["thumb", "retracted"]),
    )
    def disturb(self, noise: bytes, name: str, kind: str) -> None:
        """Bytes that are no event, from whoever can reach the bus."""
        if name not in self.spent:
            self.spent.add(name)
            subject = subjects.feedback("tuneloop", kind, "someone", name)
            self.publish(subject, b"\xff" + noise, name)

    def publish(self, subject: str, data: bytes, event_id: str) -> None:
        self.run(self.bus.publish(subject, data, event_id=event_id))

    @rule(data=st.data(), name=st.sampled_from(["feedback", "rollouts"]), crash=st.booleans())
    def deliver(self, data: st.DataObject, name: str, crash: bool) -> None:
        """Some of what waits, in any order; a crash keeps it from being acknowledged."""
        self.run(self.take_in(self.intakes[name], data, crash))

    async def take_in(self, intake: Intake, data: st.DataObject, crash: bool) -> None:
        durable = f"learner-tuneloop-{intake.name}"
        consumer = await self.bus.consume(
            stream=intake.stream, durable=durable, subjects=[intake.subject], ack_wait=60.0
        )
        waiting = await consumer.fetch(256, 0.0)
        order = data.draw(st.permutations(range(len(waiting)))) if waiting else []
        count = data.draw(st.sampled_from([len(waiting), len(waiting) // 2, 1]))
        for position in order[count:]:
            await waiting[position].nak()
        taken = [waiting[position] for position in order[:count]]
        if crash:
            for delivery in taken:
                try:
                    event = intake.decode(delivery)
                except wire.CorruptData:
                    continue
                intake.record([event])
                self.note(event)
            for delivery in taken:
                await delivery.nak()
            return
        for delivery in taken:
            try:
                self.note(intake.decode(delivery))
            except wire.CorruptData:
                continue
        await intake.handle(self.bus, durable, taken)

    def note(self, event: Any) -> None:
        """Tell the model what the ledger was told."""
        if isinstance(event, tuple):
            known = {given.id: given for given in self.order}
            said = event[0]
            if isinstance(said, wire.Retraction):
                self.model.retracted.add(said.feedback_id)
            else:
                self.model.record(known[said.feedback_id], self.day)
        else:
            self.model.rollouts.add(event.completion_id)

    # What the learner and the clock do

    @rule(objective=st.sampled_from(OBJECTIVES))
    def learn(self, objective: str) -> None:
        taken, refusals = ready.take(self.database, objective, 2, edit_tokens=edit_tokens)
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

    @precondition(lambda self: self.steps)
    @rule()
    def go_back(self) -> None:
        undone = self.steps.pop()
        steps.roll_back(self.database, "policy", len(self.steps), START)
        self.model.used = [key for key in self.model.used if key not in undone]

    @rule(days=st.sampled_from([1.0, 8.0]))
    def wait(self, days: float) -> None:
        self.day += days
        ending.expire(
            self.database, START + self.day * DAY, max_age=None, rollout_wait=WAIT_DAYS * DAY
        )
        self.model.expire(self.order, self.day, WAIT_DAYS)

    # What must hold

    @invariant()
    def the_stream_holds_what_was_acknowledged(self) -> None:
        events = self.bus.streams[subjects.FEEDBACK].events
        retracted = sum(given.retracted for given in self.order)
        assert len(events) == len(self.order) + retracted + len(self.spent)

    @invariant()
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

    @invariant()
    def what_can_be_learned_from_is_what_the_model_says(self) -> None:
        query = ready.ready_samples(samples.c.sample_id, samples.c.objective).where(
            samples.c.state == "open", samples.c.kind != "siblings"
        )
        with self.database.read() as connection:
            found = {(row.sample_id, row.objective) for row in connection.execute(query)}
        assert found == self.model.ready(self.order)


quick = settings(
    max_examples=50,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


class TestFeedback(Feedback.TestCase):
    """The same steps each time."""

    settings = quick


@pytest.mark.slow
class TestFeedbackAtLength(Feedback.TestCase):
    """Other steps each time, and many."""

    settings = settings(quick, max_examples=1000, stateful_step_count=60, derandomize=False)
