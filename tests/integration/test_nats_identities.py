"""deploy/nats with a real server: each process can do its job on NATS, and nothing else."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import nats
import nkeys
import pytest
import trustme
from support.nats_servers import Certificate, Server, make_certificate
from support.ports import free_port
from support.waiting import until

from tuneloop.bus import subjects
from tuneloop.bus.access import Access
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.bus.streams import call_api
from tuneloop.errors import Conflict, SettingsError, Unavailable

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "nats"
NAMES = {
    "gateway": "gateway",
    "generation": "tuneloop-generation",
    "reward": "tuneloop-reward",
    "learner": "tuneloop-learner",
}
GENERATED = "tuneloop.v1.*.rollout.generated.*"
ROLLOUT = "tuneloop.v1.tuneloop.rollout.generated.u1"
FEEDBACK = "tuneloop.v1.tuneloop.feedback.f1.thumb.u1"
SIGNAL = subjects.signal("tuneloop", "copied", "u1")


@dataclass(frozen=True, kw_only=True)
class Site:
    url: str
    certificate: Certificate
    passwords: Path

    def access(self, identity: str) -> Access:
        return Access(
            user=identity,
            password_file=self.passwords / identity,
            tls_ca_file=self.certificate.ca,
            tls_cert_file=self.certificate.cert,
            tls_key_file=self.certificate.key,
        )

    @asynccontextmanager
    async def bus(self, identity: str) -> AsyncIterator[JetStreamBus]:
        bus = await JetStreamBus.connect(
            self.url, name=NAMES[identity], access=self.access(identity)
        )
        try:
            yield bus
        finally:
            await bus.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("nats")
    make_certificate(trustme.CA(), folder / "tls", "localhost", "127.0.0.1")
    port = free_port()
    for file in DEPLOY.iterdir():
        text = file.read_text()
        for there, here in (
            ("/etc/nats-tls", str(folder / "tls")),
            ('"/data"', f'"{folder / "data"}"'),
            ("0.0.0.0:4222", f"127.0.0.1:{port}"),
            ('http: "0.0.0.0:8222"', ""),
            ("sync_interval: always", ""),
        ):
            text = text.replace(there, here)
        (folder / file.name).write_text(text)
    passwords = {f"NATS_{who.upper()}_PASSWORD": f"pw-{who}" for who in (*NAMES, "admin")}
    server = Server(config=folder / "nats-tls.conf", port=port, environment=passwords)
    server.start()
    server.wait()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def site(server: Server) -> Site:
    folder = server.config.parent
    passwords = folder / "passwords"
    passwords.mkdir()
    for who in NAMES:
        (passwords / who).write_text(f"pw-{who}\n")
    tls = folder / "tls"
    return Site(
        url=f"tls://localhost:{server.port}",
        certificate=Certificate(ca=tls / "ca.crt", cert=tls / "tls.crt", key=tls / "tls.key"),
        passwords=passwords,
    )


async def test_streams_are_the_learners_to_make(site: Site) -> None:
    """First: the module's server has none yet."""
    async with site.bus("gateway") as gateway, site.bus("learner") as learner:
        early = FEEDBACK.replace("f1", "f0")
        with pytest.raises(Unavailable, match="does not allow gateway to publish"):
            await gateway.publish(early, b"x", event_id="f0")
        assert await learner.routing("policy.tuneloop.stable") is None
        assert (await gateway.publish(early, b"x", event_id="f0")).stream == subjects.FEEDBACK


async def test_each_can_do_its_job(site: Site) -> None:
    async with AsyncExitStack() as stack:
        bus = {who: await stack.enter_async_context(site.bus(who)) for who in NAMES}
        stable = subjects.stable_policy_key("tuneloop")
        await bus["learner"].set_routing(stable, b"one", revision=None)
        watched = bus["generation"].watch_routing(stable)
        assert (await anext(watched)).value == b"one"
        assert (await bus["reward"].routing(stable)).value == b"one"  # type: ignore[union-attr]
        await bus["generation"].publish(ROLLOUT, b"r", event_id="r1")
        scoring = await bus["reward"].consume(
            stream=subjects.ROLLOUTS,
            durable="reward",
            subjects=[GENERATED],
            ack_wait=5,
        )
        (delivery,) = await scoring.fetch(1, 5.0)
        await bus["reward"].publish("tuneloop.v1.tuneloop.rollout.scored.u1", b"s", event_id="s1")
        await delivery.ack()
        await until_drained(scoring.pending)
        first = subjects.feedback_with_id("f1")
        await bus["gateway"].publish_first(FEEDBACK, b"f", event_id="f1", unique_filter=first)
        with pytest.raises(Conflict):
            await bus["gateway"].publish_first(FEEDBACK, b"f", event_id="f1b", unique_filter=first)
        assert (await bus["gateway"].last(first)).data == b"f"  # type: ignore[union-attr]
        await bus["gateway"].publish(SIGNAL, b"g", event_id="g1")
        await bus["gateway"].set_routing(subjects.usage_key("k"), b"1", revision=None)
        for stream, subject in (
            (subjects.FEEDBACK, "tuneloop.v1.tuneloop.feedback.>"),
            (subjects.SIGNALS, subjects.signals_of("tuneloop")),
            (subjects.ROLLOUTS, "tuneloop.v1.tuneloop.rollout.scored.*"),
        ):
            intake = await bus["learner"].consume(
                stream=stream, durable=f"learner-tuneloop-{stream}", subjects=[subject], ack_wait=5
            )
            for taken in await intake.fetch(9, 5.0):
                await taken.ack()
            await until_drained(intake.pending)
        await bus["learner"].publish(subjects.learner_step("tuneloop"), b"1", event_id="step")
        assert await bus["gateway"].last(subjects.learner_step("tuneloop")) is not None
        await bus["learner"].bury(b"b", consumer="learner-x", origin="o", reason="r", event_id="b1")
        for stream, subject_filter in subjects.of_user("u1"):
            erased = await bus["learner"].erase(stream, [subject_filter], seconds=20.0)
            assert (erased.overwritten > 0, erased.left) == (stream != subjects.DEAD_LETTERS, 0)
        assert await bus["learner"].purge(subjects.FEEDBACK, "tuneloop.v1.*.feedback.*.*.u1") == 0
        await watched.aclose()  # type: ignore[attr-defined]


async def until_drained(pending: Callable[[], Awaitable[int]]) -> None:
    while await pending():
        await asyncio.sleep(0.02)


Attempt = Callable[[JetStreamBus], Awaitable[object]]


def publish(subject: str) -> Attempt:
    return lambda bus: bus.publish(subject, b"x", event_id=f"forged-{subject}")


def call(verb: str) -> Attempt:
    return lambda bus: call_api(bus.connection, verb, {}, 5.0)


def listen(stream: str, durable: str = "spy") -> Attempt:
    return lambda bus: bus.consume(stream=stream, durable=durable, subjects=[">"], ack_wait=5)


def route(key: str) -> Attempt:
    return lambda bus: bus.set_routing(key, b"evil", revision=None)


FORBIDDEN: dict[str, dict[str, Attempt]] = {
    "gateway": {
        "forge a rollout": publish(ROLLOUT),
        "publish a version": publish(subjects.weights_published("tuneloop")),
        "route a version": route(subjects.stable_policy_key("tuneloop")),
        "read rollouts": lambda bus: bus.last(ROLLOUT),
        "consume feedback": listen(subjects.FEEDBACK),
        "purge feedback": lambda bus: bus.purge(subjects.FEEDBACK, ">"),
        "delete a stream": call(f"STREAM.DELETE.{subjects.FEEDBACK}"),
        "delete a message": call(f"STREAM.MSG.DELETE.{subjects.FEEDBACK}"),
    },
    "generation": {
        "forge feedback": publish(FEEDBACK),
        "forge a signal": publish(SIGNAL),
        "forge a score": publish("tuneloop.v1.tuneloop.rollout.scored.u1"),
        "route a version": route(subjects.stable_policy_key("tuneloop")),
        "read feedback": lambda bus: bus.last(FEEDBACK),
        "consume rollouts": listen(subjects.ROLLOUTS),
        "change a stream": call(f"STREAM.UPDATE.{subjects.ROLLOUTS}"),
    },
    "reward": {
        "forge feedback": publish(FEEDBACK),
        "forge a rollout": publish(ROLLOUT),
        "route a reward model": route(subjects.reward_model_key("tuneloop")),
        "read feedback": lambda bus: bus.last(FEEDBACK),
        "consume as another": listen(subjects.ROLLOUTS),
        "delete a consumer": call(f"CONSUMER.DELETE.{subjects.ROLLOUTS}.reward"),
        "delete a message": call(f"STREAM.MSG.DELETE.{subjects.ROLLOUTS}"),
    },
    "learner": {
        "forge feedback": publish(FEEDBACK),
        "forge a rollout": publish(ROLLOUT),
        "count a key's use": route(subjects.usage_key("k2")),
        "score as reward": listen(subjects.ROLLOUTS, "reward"),
        "delete a stream": call(f"STREAM.DELETE.{subjects.ROLLOUTS}"),
        "purge the routing": lambda bus: bus.purge("KV_tuneloop_routing", ">"),
        "delete a version's event": call(f"STREAM.MSG.DELETE.{subjects.LEARNER}"),
    },
}


async def refused(attempt: Awaitable[object], what: str) -> None:
    await attempt
    pytest.fail(f"it could {what}")


@pytest.mark.parametrize("identity", NAMES)
async def test_what_is_not_its_job_is_refused_at_once(site: Site, identity: str) -> None:
    async with site.bus("learner") as learner:
        await learner.routing("policy.tuneloop.stable")
    async with site.bus(identity) as bus:
        for what, attempt in FORBIDDEN[identity].items():
            # A refusal that was waited for would be "did not answer in time".
            with pytest.raises(Unavailable, match=f"does not allow {NAMES[identity]}"):
                await refused(attempt(bus), what)
        assert await bus.routing(subjects.reward_model_key("tuneloop")) is None


@pytest.mark.parametrize("identity", NAMES)
async def test_nobody_listens_to_what_is_not_for_it(site: Site, identity: str) -> None:
    errors: list[str] = []

    async def note(error: Exception) -> None:
        errors.append(str(error))

    options = site.access(identity).options()
    client = await nats.connect(site.url, error_cb=note, **options)
    others = [f"_INBOX.{name}.>" for who, name in NAMES.items() if who != identity]
    for subject in (">", "tuneloop.>", "$JS.>", "$KV.>", "_INBOX.>", *others):
        await client.subscribe(subject)
        await until(lambda: any(f'"{subject.lower()}"' in error for error in errors))  # noqa: B023
    await client.close()


async def test_a_wrong_password_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "reward").write_text("guessed")
    access = site.access("reward")
    wrong = Site(url=site.url, certificate=site.certificate, passwords=tmp_path)
    with pytest.raises(SettingsError, match="nats_password_file"):
        wrong.access("learner").options()
    async with wrong.bus("reward") as bus:
        await until(lambda: "uthorization" in bus.connection.unavailable().message)
    assert access.password_file is not None


async def test_a_server_of_another_authority_gets_no_password(site: Site, tmp_path: Path) -> None:
    other = make_certificate(trustme.CA(), tmp_path / "other", "localhost")
    async with Site(url=site.url, certificate=other, passwords=site.passwords).bus("reward") as bus:
        await until(lambda: "verify failed" in bus.connection.unavailable().message)
        with pytest.raises(Unavailable, match="verify failed"):
            await bus.publish(ROLLOUT, b"x", event_id="x")


async def test_without_a_certificate_nobody_gets_in(site: Site) -> None:
    access = Access(
        user="reward",
        password_file=site.passwords / "reward",
        tls_ca_file=site.certificate.ca,
    )
    bus = await JetStreamBus.connect(site.url, name="tuneloop-reward", access=access, wait=0.5)
    assert not bus.connected
    await bus.close()


async def test_an_nkey_in_place_of_a_password(tmp_path: Path) -> None:
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    (tmp_path / "seed").write_bytes(seed)
    port = free_port()
    config = tmp_path / "nats.conf"
    config.write_text(
        f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{tmp_path}/data" }}\n'
        f"authorization {{ users: [ {{ nkey: {public} }} ] }}\n"
    )
    server = Server(config=config, port=port)
    server.start()
    server.wait()
    try:
        url = f"nats://127.0.0.1:{port}"
        access = Access(nkey_seed_file=tmp_path / "seed")
        bus = await JetStreamBus.connect(url, name="gateway", access=access)
        assert await bus.routing("policy.tuneloop.stable") is None
        await bus.close()
        stranger = await JetStreamBus.connect(url, name="gateway", wait=0.5)
        await until(lambda: "uthorization" in stranger.connection.unavailable().message)
        await stranger.close()
    finally:
        server.kill()
