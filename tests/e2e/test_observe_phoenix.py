"""The spans of a whole service, read back from a real collector."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from support import phoenix
from support.e2e_client import OPEN_GATE, ServeTiny, User, rows, wait_until
from support.otlp_collector import SAMPLING, SAMPLING_ATTRIBUTES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SECRET = "the-launch-code-is-4711"
TURNS = [{"role": "user", "content": SECRET}]
SHORT = {"max_tokens": 12}
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": TURNS, "session_id": "ann", **SHORT}),
    "stream": ("/v1/chat/completions", {"messages": TURNS, "stream": True, **SHORT}),
    "completion": ("/v1/completions", {"prompt": SECRET, **SHORT}),
    "message": ("/v1/messages", {"messages": TURNS, **SHORT}),
    "response": ("/v1/responses", {"input": SECRET, "max_output_tokens": 12}),
}
SET = {"messages": TURNS, **SAMPLING}
GENERATE = "tuneloop.v1.GenerationService/Generate"
TREE = {
    ("POST /v1/chat/completions", None),
    ("chat tuneloop", "POST /v1/chat/completions"),
    ("chat tuneloop", "POST /v1/messages"),
    ("chat tuneloop", "POST /v1/responses"),
    ("text_completion tuneloop", "POST /v1/completions"),
    (GENERATE, "chat tuneloop"),
    (GENERATE, "text_completion tuneloop"),
    ("publish rollout", GENERATE),
    ("score", GENERATE),
    ("take in score", "score"),
    ("take in rollout", GENERATE),
    ("gen_ai.evaluation.result", "take in rollout"),
    ("POST /v1/feedback", None),
    ("publish feedback", "POST /v1/feedback"),
    ("take in feedback", "POST /v1/feedback"),
    ("step", None),
    ("make version", "step"),
    ("publish version", "make version"),
    ("gate", "make version"),
    ("load version", "tuneloop.v1.GenerationService/LoadWeights"),
    ("activate version", "make version"),
    ("publish activation", "activate version"),
    ("take in activation", "activate version"),
}
"""The spans of docs/observability.md, each with its parent."""
LAST = Counter(
    {
        "score": len(ASKED),
        "take in score": len(ASKED),
        "POST /v1/feedback": len(ASKED) + 2,
        "gen_ai.evaluation.result": len(ASKED) + 2,
        "activate version": 1,
        "publish activation": 1,
        "take in activation": 1,
    }
)
"""The last ones that each process sends."""


@dataclass(frozen=True)
class Kept:
    """The collector's spans; the ids of the answers that they are about, and the texts of these."""

    answers: dict[str, str]
    """By the keys of `ASKED`."""
    set_up: str
    texts: list[str]
    spans: list[dict[str, Any]]

    def named(self, name: str) -> list[dict[str, Any]]:
        return [span for span in self.spans if span["name"] == name]

    def attributes(self, name: str) -> dict[str, dict[str, Any]]:
        """Attributes of the spans of a name, by the answer that they are about."""
        found = [span["attributes"] for span in self.named(name)]
        return {about["gen_ai.response.id"]: about for about in found}


def post(user: User, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{user.service.url}{path}", json=body, timeout=60)


def ask(user: User, path: str, body: dict[str, Any]) -> str:
    """The id that feedback on the answer names."""
    response = post(user, path, {"model": "tuneloop", **body})
    assert response.status_code == 200, response.text
    return response.headers["x-completion-id"]


def judge(user: User, answers: dict[str, str]) -> None:
    """A thumb on each, a rating of a session, and a comment."""
    for number, completion_id in enumerate(answers.values()):
        assert user.press(completion_id, up=number % 2 == 0).status_code == 202
    for body in (
        {"kind": "rating", "session_id": "ann", "value": 4},
        {"kind": "comment", "completion_id": answers["message"], "text": SECRET},
    ):
        assert post(user, "/v1/feedback", body).status_code == 202


@pytest.fixture(scope="module")
def kept(serve_tiny: ServeTiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    learner = {
        "RELEASE": "gate",
        **OPEN_GATE,
        "BATCH_SIZE": "2",
        "BATCH_WAIT_SECONDS": "0.5",
        "PUBLISH_EVERY_STEPS": "1",
        "PUBLISH_EVERY_SECONDS": "0",
    }
    with phoenix.running(tmp_path_factory.mktemp("phoenix")) as collector:
        environment = {
            **{f"TUNELOOP_LEARNER_{name}": value for name, value in learner.items()},
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_RESOURCE_ATTRIBUTES": "openinference.project.name=watched",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }

        def has(least: Counter[str]) -> bool:
            return Counter(span["name"] for span in collector.spans("watched")) >= least

        with serve_tiny("collected", environment) as user:
            answers = {name: ask(user, *asked) for name, asked in ASKED.items()}
            set_up = ask(user, "/v1/chat/completions", SET)
            too_long = {"model": "tuneloop", "messages": TURNS, "max_tokens": 100_000}
            assert post(user, "/v1/chat/completions", too_long).status_code == 400
            # Feedback that is taken in before its answer could not be told in its trace.
            taken_in = Counter({"take in rollout": len(ASKED)})
            wait_until(lambda: has(taken_in), "every answer in the ledger")
            judge(user, answers)
            wait_until(lambda: has(LAST), "the last spans of each process")
            texts = dict(rows(user, "SELECT completion_id, completion_text FROM rollouts"))
        told = [texts[completion_id] for completion_id in answers.values()]
        yield Kept(answers, set_up, told, collector.spans("watched"))


def test_a_span_of_each_kind_stands_where_the_page_says(kept: Kept) -> None:
    names = {span["context"]["span_id"]: span["name"] for span in kept.spans}
    assert {(span["name"], names.get(span["parent_id"])) for span in kept.spans} >= TREE


def test_answers_keep_the_attributes_of_the_page(kept: Kept) -> None:
    found = kept.attributes("chat tuneloop") | kept.attributes("text_completion tuneloop")
    for name, completion_id in kept.answers.items():
        about = found[completion_id]
        operation = "text_completion" if name == "completion" else "chat"
        assert about["gen_ai.operation.name"] == operation
        assert about["gen_ai.provider.name"] == "tuneloop"
        assert about["gen_ai.request.model"] == about["gen_ai.response.model"] == "tuneloop"
        assert about["gen_ai.request.max_tokens"] == 12
        assert 0 < about["gen_ai.usage.output_tokens"] <= 12
        assert about["gen_ai.response.finish_reasons"] in (["length"], ["stop"])
        assert about["gen_ai.usage.input_tokens"] > 0
        assert about["tuneloop.policy_version"] == 0
        assert ("gen_ai.request.stream" in about) is (name == "stream")
        assert ("gen_ai.response.time_to_first_chunk" in about) is (name == "stream")
    assert found[kept.answers["chat"]]["gen_ai.conversation.id"] == "ann"
    assert found[kept.set_up].items() >= SAMPLING_ATTRIBUTES.items()
    served = kept.attributes(GENERATE)
    for completion_id in kept.answers.values():
        assert served[completion_id]["gen_ai.request.model"] == "tuneloop"
        assert served[completion_id]["tuneloop.policy_version"] == 0
    [failed] = [span for span in kept.named("chat tuneloop") if span["status_code"] == "ERROR"]
    assert failed["attributes"]["error.type"] == "invalid_request"


def test_judgements_keep_their_values_in_the_trace_of_the_answer(kept: Kept) -> None:
    ids = set(kept.answers.values())
    assert set(kept.attributes("take in score")) >= ids
    scores = kept.attributes("score")
    for completion_id in ids:
        assert scores[completion_id]["gen_ai.evaluation.name"] == "reward"
        assert isinstance(scores[completion_id]["gen_ai.evaluation.score.value"], float)

    traces = {
        span["attributes"]["gen_ai.response.id"]: span["context"]["trace_id"]
        for span in kept.named(GENERATE)
    }
    told = []
    for span in kept.named("gen_ai.evaluation.result"):
        about = span["attributes"]
        completion_id = about.get("gen_ai.response.id")
        if completion_id:
            assert span["context"]["trace_id"] == traces[completion_id]
        judged = completion_id or about["gen_ai.conversation.id"]
        value = about.get("gen_ai.evaluation.score.value")
        label = about.get("gen_ai.evaluation.score.label")
        told.append((about["gen_ai.evaluation.name"], judged, value, label))
    thumbs = [(1.0, "up") if number % 2 == 0 else (0.0, "down") for number in range(len(ASKED))]
    assert set(told) == {
        *(
            ("thumb", name, *thumb)
            for name, thumb in zip(kept.answers.values(), thumbs, strict=True)
        ),
        ("rating", "ann", 4.0, None),
        ("comment", kept.answers["message"], None, None),
    }


def test_no_span_holds_a_text(kept: Kept) -> None:
    spans = json.dumps(kept.spans)
    assert kept.answers["chat"] in spans
    assert SECRET not in spans
    # What a random model says may be a letter, which stands in any span.
    texts = [text for text in kept.texts if len(text) > 8]
    assert texts
    assert [text for text in texts if json.dumps(text)[1:-1] in spans] == []
