"""The real processes, watched: one trace through all of them, JSON lines, metrics that parse."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.e2e_client import ServeTiny, User, wait_until
from support.otlp_collector import Collected, Collector, collecting

from docs import render_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECRET = "the-launch-code-is-4711"


@dataclass
class Watched:
    user: User
    collector: Collector

    def exposition(self, process: str) -> str:
        if process == "gateway":
            return httpx.get(f"{self.user.service.url}/metrics", timeout=30).text
        port = self.user.service.run_state()["processes"][process]["metrics_port"]
        return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text

    def logs(self, process: str) -> list[str]:
        path = self.user.service.data_dir / "logs" / f"{process}.log"
        return path.read_text(errors="replace").splitlines()


@pytest.fixture(scope="module")
def watched(serve_tiny: ServeTiny) -> Iterator[Watched]:
    with collecting() as collector:
        environment = {
            "TUNELOOP_LEARNER_BATCH_SIZE": "2",
            "TUNELOOP_LEARNER_BATCH_WAIT_SECONDS": "0.5",
            "TUNELOOP_LEARNER_PUBLISH_EVERY_STEPS": "1",
            "TUNELOOP_LEARNER_PUBLISH_EVERY_SECONDS": "0",
            "TUNELOOP_LEARNER_RELEASE": "off",
            "TUNELOOP_LOG_FORMAT": "json",
            "TUNELOOP_LOG_LEVEL": "DEBUG",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        with serve_tiny("watched", environment) as user:
            for number in range(4):
                assert user.press(user.chat(SECRET)["id"], up=number % 2 == 0).status_code == 202
            wait_until(lambda: user.serving_version() >= 1, "a version that learned from thumbs")
            yield Watched(user, collector)


def test_one_trace_goes_through_all_processes(watched: Watched) -> None:
    collected = watched.collector.spans

    def traces_of(name: str) -> set[str]:
        return {found.trace for found in collected() if found.span.name == name}

    def services_of(trace: str) -> set[str]:
        return {found.service for found in collected() if found.trace == trace}

    everybody = {f"tuneloop-{name}" for name in ("gateway", "generation", "reward", "learner")}
    wait_until(
        lambda: any(
            services_of(trace) == everybody for trace in traces_of("POST /v1/chat/completions")
        ),
        "an answer's trace in every process",
    )
    # A version is made in the learner and served by generation, in one trace.
    wait_until(lambda: bool(traces_of("activate version") & traces_of("step")), "a version's trace")
    steps = [found.span for found in collected() if found.span.name == "step"]
    linked = {link.trace_id.hex() for step in steps for link in step.links}
    assert linked & traces_of("POST /v1/feedback")
    assert linked & traces_of("POST /v1/chat/completions")
    assert SECRET not in "".join(str(batch) for batch in watched.collector.batches)


def test_answers_scores_and_feedback_follow_the_conventions(watched: Watched) -> None:
    def named(name: str) -> list[Collected]:
        return [found for found in watched.collector.spans() if found.span.name == name]

    wait_until(lambda: len(named("gen_ai.evaluation.result")) >= 4, "an evaluation of each thumb")
    answers = {found.attributes["gen_ai.response.id"] for found in named("chat tuneloop")}
    judged = named("gen_ai.evaluation.result")
    assert {found.attributes["gen_ai.response.id"] for found in judged} <= answers
    assert {found.attributes["gen_ai.evaluation.score.label"] for found in judged} == {"up", "down"}
    scored = {found.attributes["gen_ai.response.id"]: found.attributes for found in named("score")}
    assert set(scored) >= answers
    assert {scored[name]["gen_ai.evaluation.name"] for name in answers} == {"reward"}


@pytest.mark.parametrize("process", sorted(render_metrics.ENTRY_POINTS))
def test_a_process_says_in_json_what_it_does_and_quotes_nothing(
    watched: Watched, process: str
) -> None:
    lines = watched.logs(process)
    assert not [line for line in lines if SECRET in line]
    ours = [json.loads(line) for line in lines if line.startswith('{"time"')]
    assert ours
    assert {line["process"] for line in ours} == {process}


def test_nobody_else_on_the_machine_may_read_what_it_keeps(watched: Watched) -> None:
    root = watched.user.service.data_dir
    # Its own log is the child's: it was there before the service.
    made = [path for path in root.rglob("*") if path.name != "up.log"]
    assert len(made) > 20
    kept = [path for path in (root, *made) if not path.is_symlink()]
    assert [path for path in kept if path.stat().st_mode & 0o077] == []


@pytest.mark.parametrize("process", sorted(render_metrics.ENTRY_POINTS))
def test_a_process_exposes_the_metrics_of_its_page(watched: Watched, process: str) -> None:
    text = watched.exposition(process)
    exposed = {
        f.name for f in text_string_to_metric_families(text) if f.name.startswith("tuneloop")
    }
    created = {name for name in exposed if name.endswith("_created")}
    page = {metric._name for metric in render_metrics.metrics_of(process)}
    assert exposed - created == page
    if (promtool := shutil.which("promtool")) is not None:
        command = [promtool, "check", "metrics"]
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=60)
        assert (done.returncode, done.stdout + done.stderr) == (0, b"")
