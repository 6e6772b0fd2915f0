"""The best of several candidates through a real socket, in the form of each of the three APIs."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from support.gateway_fakes import IDS
from support.gateway_stack import Stack, running_gateway

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.errors import Overloaded, TuneloopError, Unavailable
from tuneloop.gateway.keys.store import KeyFile, Limits, Scope, new_key
from tuneloop.gateway.openai import candidates
from tuneloop.v1 import rollout_pb2

ENDINGS = ("", "ab", "abcd", "a")
"""Of the candidates. The fake reward is an answer's length, so the third is the best."""
CHAT: dict[str, Any] = {"model": "tuneloop", "messages": [{"role": "user", "content": "hi"}]}
MESSAGE: dict[str, Any] = CHAT | {"max_tokens": 20}
RESPONSE: dict[str, Any] = {"model": "tuneloop", "input": "hi"}
BEST: dict[str, Any] = {"metadata": {"best_of": "4"}}
APIS = {"/v1/chat/completions": CHAT, "/v1/messages": MESSAGE, "/v1/responses": RESPONSE}
TEXT = "Hello, wörld \u2028👋abcd"

of_each_api = pytest.mark.parametrize("path", APIS)


@pytest.fixture(autouse=True)
def four_candidates(stack: Stack) -> None:
    stack.generation.endings = ENDINGS


async def events(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = await http.post(path, json=body | {"stream": True})
    assert response.status_code == 200, response.text
    data = [line[6:] for line in response.text.split("\n") if line.startswith("data: ")]
    return [json.loads(each) for each in data if each != "[DONE]"]


def text_in(path: str, document: Any) -> str:
    """Return what a whole answer says."""
    match path:
        case "/v1/messages":
            (block,) = document["content"]
            return str(block["text"])
        case "/v1/responses":
            (item,) = document["output"]
            return str(item["content"][0]["text"])
        case _:
            (choice,) = document["choices"]
            assert choice["completion_id"] == document["id"]
            return str(choice["message"]["content"])


def tokens_in(usage: Any) -> int:
    return int(usage.get("output_tokens") or usage["completion_tokens"])


@of_each_api
async def test_the_candidate_with_the_highest_reward_is_the_answer(
    stack: Stack, http: httpx.AsyncClient, path: str
) -> None:
    response = await http.post(path, json=APIS[path] | BEST | {"session_id": "talk"})
    document, (asked,) = response.json(), stack.generation.requests
    assert text_in(path, document) == TEXT
    ids = [asked.completion_id, *(f"{asked.completion_id}.{n}" for n in (1, 2, 3))]
    assert document["best_of"] == {
        "n": 4,
        "chosen": 2,
        "chosen_by": "reward",
        "reason": None,
        "scores": dict(zip(ids, (15.0, 17.0, 19.0, 16.0), strict=True)),
        "reward_model_version": 2,
    }
    assert document["id"] == response.headers["x-completion-id"] == ids[2]
    assert IDS.check("default", ids[3], "id").user_hash == asked.user_hash
    # All that was sampled is counted, the prompt once.
    assert tokens_in(document["usage"]) == 4 * 6
    assert (asked.sampling.n, asked.are_candidates, asked.session_id) == (4, True, "talk")
    (scored,) = stack.reward.requests
    assert list(scored.completions) == [TEXT.removesuffix("abcd") + e for e in ENDINGS]
    assert [(m.role, m.content) for m in scored.chat.messages] == [("user", "hi")]
    (choice,) = stack.generation.choices
    assert (choice.group_id, choice.completion_id) == (ids[0], ids[2])


@of_each_api
async def test_a_stream_begins_once_the_best_is_chosen(
    stack: Stack, http: httpx.AsyncClient, path: str
) -> None:
    told = await events(http, path, APIS[path] | BEST)
    chosen = f"{stack.generation.requests[0].completion_id}.2"
    match path:
        case "/v1/messages":
            assert told[0]["message"]["id"] == chosen
            pieces = [e["delta"]["text"] for e in told if e["type"] == "content_block_delta"]
            (end,) = [event for event in told if event["type"] == "message_delta"]
            best, usage = end["best_of"], end["usage"]
        case "/v1/responses":
            assert told[0]["response"]["id"] == told[-1]["response"]["id"] == chosen
            pieces = [e["delta"] for e in told if e["type"] == "response.output_text.delta"]
            best, usage = told[-1]["response"]["best_of"], told[-1]["response"]["usage"]
        case _:
            assert {event["id"] for event in told} == {chosen}
            assert {e["choices"][0]["completion_id"] for e in told} == {chosen}
            pieces = [event["choices"][0]["delta"].get("content", "") for event in told]
            assert [e["choices"][0]["index"] for e in told] == [0] * len(told)
            best, usage = told[-1]["best_of"], None
            assert "best_of" not in told[-2]
    assert "".join(pieces) == TEXT
    assert (best["chosen"], best["chosen_by"]) == (2, "reward")
    assert usage is None or tokens_in(usage) == 4 * 6


async def test_a_stream_of_a_chat_can_tell_its_usage(http: httpx.AsyncClient) -> None:
    body = CHAT | BEST | {"stream_options": {"include_usage": True}, "logprobs": True}
    *_, last, closing = await events(http, "/v1/chat/completions", body)
    assert last["usage"] is None
    assert last["best_of"]["chosen"] == 2
    assert closing["usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 24,
        "total_tokens": 35,
    }


async def test_the_packages_of_openai_and_anthropic_read_the_choice(stack: Stack) -> None:
    metadata: Any = BEST["metadata"]
    async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as openai:
        chat = await openai.chat.completions.create(**CHAT, metadata=metadata)
        response = await openai.responses.create(**RESPONSE, metadata=metadata)
        async with openai.responses.stream(**RESPONSE, metadata=metadata) as stream:
            streamed = await stream.get_final_response()
    async with AsyncAnthropic(base_url=stack.url, api_key="none", max_retries=0) as anthropic:
        message = await anthropic.messages.create(**MESSAGE, metadata=metadata)
        async with anthropic.messages.stream(**MESSAGE, metadata=metadata) as stream_of_message:
            streamed_message = await stream_of_message.get_final_message()
    for answer in (chat, response, message, streamed):
        best = (answer.model_extra or {})["best_of"]
        assert (best["chosen"], answer.id) == (2, list(best["scores"])[2])
    assert response.output_text == streamed.output_text == TEXT
    assert streamed_message.id.endswith(".2")


@pytest.mark.parametrize(
    ("value", "n"), [("1", 1), (1, 1), (None, 1), ("2", 2), (3, 3), ("8", 8), (8, 8)]
)
async def test_how_many_candidates_there_are(
    stack: Stack, http: httpx.AsyncClient, value: Any, n: int
) -> None:
    stack.generation.endings = ()
    response = await http.post("/v1/chat/completions", json=CHAT | {"metadata": {"best_of": value}})
    (asked,) = stack.generation.requests
    assert (asked.sampling.n, asked.are_candidates) == (n, n > 1)
    assert ("best_of" in response.json()) == (n > 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"metadata": {"best_of": "0"}}, "must be 1 to 8, got '0'"),
        ({"metadata": {"best_of": 9}}, "must be 1 to 8, got '9'"),
        ({"metadata": {"best_of": "04"}}, "must be 1 to 8, got '04'"),
        ({"metadata": {"best_of": True}}, "must be 1 to 8, got 'True'"),
        ({"metadata": {"best_of": 2.5}}, "must be 1 to 8, got '2.5'"),
        (BEST | {"n": 2}, "one is answered: leave out n"),
        (BEST | {"temperature": 0}, "at temperature 0 all candidates are the same"),
        (BEST | {"top_p": 0}, "at temperature 0 all candidates are the same"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    stack: Stack, http: httpx.AsyncClient, change: dict[str, Any], says: str
) -> None:
    response = await http.post("/v1/chat/completions", json=CHAT | change)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "metadata.best_of")
    assert says in error["message"]
    assert stack.generation.requests == []


async def test_plain_prompts_have_no_candidates(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/completions", json={"model": "tuneloop", "prompt": "a"} | BEST)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "metadata.best_of")


async def test_other_apis_refuse_in_their_own_form(http: httpx.AsyncClient) -> None:
    wrong = {"metadata": {"best_of": "many"}}
    message = await http.post("/v1/messages", json=MESSAGE | wrong)
    assert message.json()["error"]["message"].startswith("metadata.best_of: must be 1 to 8")
    response = await http.post("/v1/responses", json=RESPONSE | wrong)
    assert response.json()["error"]["param"] == "metadata.best_of"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Overloaded("64 calls wait", retry_after=1), "64 calls wait"),
        (Unavailable("no model at /secret/path"), "a part of the service failed"),
    ],
)
@of_each_api
async def test_without_scores_the_first_is_the_answer(
    stack: Stack, http: httpx.AsyncClient, path: str, error: TuneloopError, reason: str
) -> None:
    stack.reward.fail = error
    response = await http.post(path, json=APIS[path] | BEST)
    document, best = response.json(), response.json()["best_of"]
    assert text_in(path, document) == TEXT.removesuffix("abcd")
    assert (best["chosen"], best["chosen_by"], best["reward_model_version"]) == (0, "none", None)
    assert best["reason"].startswith(f"the reward service did not score them: {reason}")
    assert "/secret/path" not in response.text
    assert set(best["scores"].values()) == {None}
    (choice,) = stack.generation.choices
    assert choice.completion_id == choice.group_id == document["id"]


async def test_a_reward_service_that_is_away_or_slow_loses_no_answer(
    stack: Stack, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "SCORE_SECONDS", 0.1)
    stack.reward.delay = 30.0
    slow = (await http.post("/v1/chat/completions", json=CHAT | BEST)).json()
    assert "did not answer in time" in slow["best_of"]["reason"]
    await stack.servers["reward"].stop()
    away = (await http.post("/v1/chat/completions", json=CHAT | BEST)).json()
    assert away["best_of"]["chosen_by"] == "none"
    assert away["choices"][0]["finish_reason"] == "stop"


async def test_a_reward_that_is_not_informative_yet_chooses_nothing(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    stack.reward.informative = False
    best = (await http.post("/v1/chat/completions", json=CHAT | BEST)).json()["best_of"]
    assert (best["chosen"], best["chosen_by"]) == (0, "none")
    assert best["reason"] == "no scorer is informative yet"
    assert list(best["scores"].values()) == [15.0, 17.0, 19.0, 16.0]


async def test_a_candidate_without_a_score_is_not_chosen(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    stack.generation.pieces = ()
    best = (await http.post("/v1/chat/completions", json=CHAT | BEST)).json()["best_of"]
    assert (best["chosen"], list(best["scores"].values())) == (2, [None, 2.0, 4.0, 1.0])
    stack.generation.endings = ()
    best = (await http.post("/v1/chat/completions", json=CHAT | BEST)).json()["best_of"]
    assert (best["chosen_by"], best["reason"]) == ("none", "no scorer could score them")


async def test_a_choice_that_generation_does_not_hear_of_is_answered_all_the_same(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    stack.generation.fail, stack.generation.fail_after = Unavailable("busy"), 99
    response = await http.post("/v1/chat/completions", json=CHAT | BEST)
    assert (response.status_code, response.json()["best_of"]["chosen"]) == (200, 2)
    assert len(stack.generation.choices) == 1


async def test_what_stays_out_of_learning_has_no_choice_to_record(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    body = CHAT | {"metadata": {"best_of": "4", "train": "false"}}
    assert (await http.post("/v1/chat/completions", json=body)).json()["best_of"]["chosen"] == 2
    assert stack.generation.requests[0].publish_rollout is False
    assert stack.generation.choices == []


async def test_candidates_that_generation_stopped_are_not_chosen(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    stack.generation.finish_reason = rollout_pb2.FINISH_REASON_ABORT
    document = (await http.post("/v1/chat/completions", json=CHAT | BEST)).json()
    assert document["choices"][0]["finish_reason"] == "abort"
    assert document["best_of"]["chosen_by"] == "none"


async def test_generation_that_fails_is_an_error_as_without_candidates(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    stack.generation.fail, stack.generation.fail_after = Unavailable("busy"), 2
    response = await http.post("/v1/chat/completions", json=CHAT | BEST | {"stream": True})
    assert response.status_code == 503
    assert stack.reward.requests == []


async def test_text_with_calls_is_scored_as_the_model_wrote_it(
    stack: Stack, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = stack.generation.final

    def final(request: Any, index: int) -> Any:
        message = plain(request, index)
        message.candidate_text = "<tool_call>" * (index == 3) + "x"
        return message

    monkeypatch.setattr(stack.generation, "final", final)
    best = (await http.post("/v1/chat/completions", json=CHAT | BEST)).json()["best_of"]
    assert best["chosen"] == 3
    assert list(stack.reward.requests[0].completions) == ["x", "x", "x", "<tool_call>x"]


async def test_feedback_on_the_answer_and_on_a_candidate(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    document = (await http.post("/v1/chat/completions", json=CHAT | BEST)).json()
    other = list(document["best_of"]["scores"])[3]
    for completion_id, value in ((document["id"], "up"), (other, "down")):
        body = {"kind": "thumb", "completion_id": completion_id, "value": value}
        assert (await http.post("/v1/feedback", json=body)).status_code == 202
    stored = [wire.decode_feedback(e.data) for e in stack.bus.streams[subjects.FEEDBACK].events]
    assert [feedback.completion_id for feedback in stored] == [document["id"], other]


async def test_a_repeat_gets_the_same_choice(stack: Stack, http: httpx.AsyncClient) -> None:
    headers = {"idempotency-key": "once"}
    first, again = [
        await http.post("/v1/chat/completions", json=CHAT | BEST, headers=headers) for _ in "ab"
    ]
    assert again.json() == first.json()
    assert len(stack.generation.requests) == len(stack.reward.requests) == 1


async def test_a_response_is_gone_on_with_from_the_chosen_one(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    first = (await http.post("/v1/responses", json=RESPONSE | BEST)).json()
    body = {"model": "tuneloop", "input": "more", "previous_response_id": first["id"]}
    assert (await http.post("/v1/responses", json=body)).status_code == 200
    turns = stack.generation.requests
    assert [m.content for m in turns[1].chat.messages] == ["hi", TEXT, "more"]
    assert turns[1].session_id == turns[0].session_id == turns[0].completion_id
    rejected = body | {"previous_response_id": turns[0].completion_id}
    assert (await http.post("/v1/responses", json=rejected)).status_code == 400


@asynccontextmanager
async def limited(folder: Path, **limits: int) -> AsyncIterator[tuple[Stack, httpx.AsyncClient]]:
    file = KeyFile(folder / "keys.json")
    secret, key = new_key("app", [Scope.INFER], Limits(**limits))
    file.add(key)
    headers = {"authorization": f"Bearer {secret}"}
    async with (
        running_gateway(keys_file=file.path) as stack,
        httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=20) as http,
    ):
        stack.generation.endings = ENDINGS
        yield stack, http


async def test_each_candidate_counts_as_a_request(tmp_path: Path) -> None:
    async with limited(tmp_path, requests_per_day=5) as (stack, http):
        first = await http.post("/v1/chat/completions", json=CHAT | BEST)
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        refused = await http.post("/v1/chat/completions", json=CHAT | BEST)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (429, "insufficient_quota")
        assert len(stack.generation.requests) == 1


async def test_the_tokens_of_all_candidates_are_charged(tmp_path: Path) -> None:
    async with limited(tmp_path, tokens_per_day=1000) as (_, http):
        body = CHAT | BEST | {"max_tokens": 20}
        answer = await http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        after = await http.post("/v1/chat/completions", json=body | {"max_tokens": 300})
        assert "has 965 of 1000 tokens left" in after.json()["error"]["message"]


async def test_a_client_that_leaves_while_candidates_are_scored(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    stack.reward.delay = 30.0
    asking = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT | BEST))
    while not stack.reward.requests:
        await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    stack.reward.delay = 0.0
    document = (await http.post("/v1/chat/completions", json=CHAT | BEST)).json()
    assert [choice.completion_id for choice in stack.generation.choices] == [document["id"]]


async def test_a_silent_stream_carries_comments_until_one_is_chosen() -> None:
    async with running_gateway(heartbeat_seconds=0.05) as stack:
        stack.generation.endings = ENDINGS
        stack.reward.delay = 0.3
        async with httpx.AsyncClient(base_url=stack.url, timeout=20) as http:
            body = CHAT | BEST | {"stream": True}
            response = await http.post("/v1/chat/completions", json=body)
    assert response.text.startswith(": still at work\n\n")
    # Its head was sent before anything was chosen.
    assert "x-completion-id" not in response.headers
    assert '.2","object":"chat.completion.chunk"' in response.text


async def test_how_answers_were_chosen_is_counted(stack: Stack, http: httpx.AsyncClient) -> None:
    async def count(chosen_by: str) -> float:
        text = (await http.get("/metrics")).text
        name = f'tuneloop_gateway_best_of_answers_total{{chosen_by="{chosen_by}"}} '
        return sum(float(line.removeprefix(name)) for line in text.split("\n") if name in line)

    before = [await count("reward"), await count("none")]
    await http.post("/v1/chat/completions", json=CHAT | BEST)
    stack.reward.informative = False
    await http.post("/v1/chat/completions", json=CHAT | BEST)
    assert [await count("reward"), await count("none")] == [n + 1 for n in before]
