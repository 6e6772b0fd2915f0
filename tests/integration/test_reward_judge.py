"""The judge against OpenAI-compatible servers on loopback: fair, biased, babbling, broken."""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import REGISTRY
from support.gateway_fakes import FakeGeneration
from support.gateway_stack import running_gateway

from tuneloop.errors import InvalidRequest, SettingsError, Unavailable
from tuneloop.reward.build import build
from tuneloop.reward.outputs import score_rows
from tuneloop.reward.scorers import judge_client
from tuneloop.reward.scorers.judge import (
    Judge,
    JudgePreference,
    JudgeScorer,
    JudgeSettings,
    parse_verdict,
)
from tuneloop.reward.scorers.judge_client import EndpointSettings

Answer = str | int | tuple[int, dict[str, str]]
Model = Callable[[dict[str, Any]], Answer]
"""From a request to the reply's text, or a status, or a status with headers."""


class Server:
    """A chat completions endpoint that answers with `model`."""

    def __init__(self, model: Model, delay: float = 0.0) -> None:
        self.model, self.delay = model, delay
        self.requests: list[dict[str, Any]] = []
        self.answered: list[tuple[dict[str, Any], Answer]] = []
        self.keys: list[str | None] = []
        self.at_once = self.most_at_once = 0
        self.url = ""
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self.complete)

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        self.keys.append(request.headers.get("authorization"))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.delay)
        self.at_once -= 1
        answer = self.model(body)
        self.answered.append((body, answer))
        if isinstance(answer, str):
            message = {"role": "assistant", "content": answer}
            return JSONResponse({"choices": [{"message": message}]})
        status, headers = answer if isinstance(answer, tuple) else (answer, {})
        return Response("no", status_code=status, headers=headers)


@asynccontextmanager
async def serving(model: Model, delay: float = 0.0) -> AsyncIterator[Server]:
    server = Server(model, delay)
    uvicorn_server = uvicorn.Server(
        uvicorn.Config(
            server.app, port=0, log_level="critical", lifespan="off", timeout_graceful_shutdown=2
        )
    )
    task = asyncio.create_task(uvicorn_server.serve())
    while not uvicorn_server.started:
        assert not task.done()
        await asyncio.sleep(0.005)
    port = uvicorn_server.servers[0].sockets[0].getsockname()[1]
    server.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield server
    finally:
        # Without a limit it waits for connections that a client in another thread keeps open.
        uvicorn_server.should_exit = True
        await task


@asynccontextmanager
async def judging(url: str, *, votes: int = 1, **options: Any) -> AsyncIterator[Judge]:
    judge = Judge(settings(url, votes=votes, **options))
    yield judge
    await judge.close()


def settings(url: str, *, votes: int = 1, **options: Any) -> JudgeSettings:
    wanted = {"model": "m", "timeout_seconds": 5.0} | options
    return JudgeSettings(endpoint=EndpointSettings(url=url, **wanted), votes=votes)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_client, "FIRST_DELAY", 0.01)


def shown(body: dict[str, Any]) -> tuple[str, ...]:
    """The answers of a request, in the order they are shown."""
    content = body["messages"][-1]["content"]
    found = re.findall(r"<answer(?:_\d)?>\n(.*?)\n</answer", content, re.DOTALL)
    return tuple(found)


def likes_long(body: dict[str, Any]) -> str:
    answers = shown(body)
    if len(answers) == 1:
        return f"[[{min(10, len(answers[0]))}]]"
    first, second = map(len, answers)
    return "[[tie]]" if first == second else f"The longer. [[{1 if first > second else 2}]]"


def replies(outcome: str) -> float:
    labels = {"outcome": outcome}
    return REGISTRY.get_sample_value("tuneloop_reward_judge_replies_total", labels) or 0.0


async def test_a_fair_judge_says_the_same_in_both_orders() -> None:
    async with serving(likes_long) as server, judging(server.url, votes=2, api_key="k") as judge:
        preference = await judge.compare("why?", "short", "a longer answer")
        assert preference == JudgePreference(probability_a=0.0, votes=2, abstained=0)
        assert (preference.chosen, preference.confidence, preference.flip_rate) == ("b", 1.0, 0.0)
        assert (await judge.compare("why?", "a longer answer", "short")).chosen == "a"
        assert (await judge.compare("why?", "four", "five")).chosen is None
    assert len(server.requests) == 12
    assert set(server.keys) == {"Bearer k"}
    body = server.requests[0]
    assert body["model"] == "m"
    assert "thoughtful, honest expert" in body["messages"][0]["content"]
    assert "why?" in body["messages"][1]["content"]
    orders = {shown(request) for request in server.requests[:4]}
    assert orders == {("short", "a longer answer"), ("a longer answer", "short")}


async def test_a_judge_that_likes_what_it_sees_first_decides_nothing() -> None:
    async with serving(lambda body: "[[1]]") as server, judging(server.url, votes=3) as judge:
        preference = await judge.compare("why?", "a", "b")
    assert preference == JudgePreference(probability_a=0.5, votes=3, abstained=0)
    assert preference.chosen is None


async def test_the_order_swap_removes_position_bias() -> None:
    """This judge sees the better answer 7 times of 10, and else names whichever is shown first."""
    dice = random.Random(0)

    def biased(body: dict[str, Any]) -> str:
        return likes_long(body) if dice.random() < 0.7 else "[[1]]"

    rows = [("q", "long answer", "no"), ("q", "no", "long answer")] * 40
    async with serving(biased) as server, judging(server.url, votes=4, concurrency=32) as judge:
        preferences = await judge.compare_all(rows)
    right: dict[bool, list[bool]] = {True: [], False: []}
    for request, answer in server.answered:
        long_is_first = len(shown(request)[0]) > len(shown(request)[1])
        right[long_is_first].append((parse_verdict(str(answer)) == 1.0) == long_is_first)
    # In one order alone it is always right about the first, 7 times of 10 about the second.
    assert all(right[True])
    assert sum(right[False]) / len(right[False]) == pytest.approx(0.7, abs=0.08)
    p_of_long = [
        p.probability_a if len(a) > 2 else 1 - p.probability_a
        for (_, a, _), p in zip(rows, preferences, strict=True)
    ]
    when_first, when_second = p_of_long[::2], p_of_long[1::2]
    # In both orders: right 7 times of 10, tied otherwise, wherever it stands.
    assert sum(when_first) / 40 == pytest.approx(0.85, abs=0.06)
    assert sum(when_second) / 40 == pytest.approx(0.85, abs=0.06)
    assert all(p.chosen is None or p.flip_rate < 0.5 for p in preferences)


async def test_garbage_is_an_abstention_and_counted() -> None:
    before = replies("unparsed")
    babble = serving(lambda body: "Both have merits.")
    async with babble as server, judging(server.url, votes=2) as judge:
        preference = await judge.compare("why?", "a", "b")
        assert await judge.rate("why?", "a") is None
    assert preference == JudgePreference(probability_a=0.5, votes=0, abstained=2)
    assert preference.chosen is None
    assert replies("unparsed") == before + 6


async def test_one_order_without_a_verdict_is_no_vote() -> None:
    def shy(body: dict[str, Any]) -> str:
        return "[[1]]" if shown(body)[0] == "a" else "Hm."

    async with serving(shy) as server, judging(server.url) as judge:
        preference = await judge.compare("why?", "a", "b")
    assert preference == JudgePreference(probability_a=0.5, votes=0, abstained=1)


async def test_what_passes_is_tried_again() -> None:
    problems: list[Answer] = [503, (429, {"Retry-After": "0.01"}), 500]

    def flaky(body: dict[str, Any]) -> Answer:
        return problems.pop() if problems else "[[8]]"

    async with serving(flaky) as server, judging(server.url, retries=3) as judge:
        assert await judge.rate("why?", "a") == 8.0
    assert len(server.requests) == 4


async def test_what_stays_away_is_an_abstention_in_the_end() -> None:
    before = replies("unavailable")
    async with serving(lambda body: 503) as server, judging(server.url, retries=1) as judge:
        preference = await judge.compare("why?", "a", "b")
        assert (preference.votes, preference.abstained) == (0, 1)
        assert len(server.requests) == 4
        with pytest.raises(Unavailable, match="status 503"):
            await judge.rate("why?", "a")
    assert replies("unavailable") == before + 3
    async with judging("http://127.0.0.1:9/v1", retries=0) as judge:
        assert (await judge.compare("why?", "a", "b")).abstained == 1


async def test_a_reply_that_takes_too_long_is_given_up() -> None:
    options = {"retries": 0, "timeout_seconds": 0.1}
    async with serving(likes_long, 0.5) as server, judging(server.url, **options) as judge:
        with pytest.raises(Unavailable, match=r"no reply in 0\.1 s"):
            await judge.rate("why?", "a")


async def test_a_reply_that_trickles_in_without_end_is_given_up() -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not writer.is_closing():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    options = {"retries": 1, "timeout_seconds": 0.2}
    async with judging(f"http://127.0.0.1:{port}/v1", **options) as judge, asyncio.timeout(20):
        with pytest.raises(Unavailable, match=r"no reply in 0\.2 s"):
            await judge.rate("why?", "a")
    server.close()


async def test_a_request_that_is_refused_costs_one_row_and_a_wrong_key_all() -> None:
    too_long = serving(lambda body: 400 if "long " * 9 in str(body) else likes_long(body))
    before = replies("refused")
    async with too_long as server, judging(server.url) as judge:
        rows = [("q", "good answer", "no"), ("q", "long " * 9, "no")]
        assert [p.chosen for p in await judge.compare_all(rows)] == ["a", None]
        assert await judge.rate("q", "long " * 9) is None
    assert replies("refused") == before + 3
    async with serving(lambda body: 401) as server, judging(server.url) as judge:
        with pytest.raises(SettingsError, match="status 401"):
            await judge.compare("q", "a", "b")


async def test_as_many_requests_at_once_as_are_allowed() -> None:
    async with serving(likes_long, 0.02) as server, judging(server.url, concurrency=3) as judge:
        await judge.compare_all([("q", "a" * n, "b") for n in range(2, 8)])
    assert server.most_at_once == 3


async def test_equal_answers_need_no_judge() -> None:
    async with judging("http://127.0.0.1:9/v1") as judge:
        assert (await judge.compare("q", "same", "same")).chosen is None


async def test_ratings_become_scores_and_failures_name_their_row() -> None:
    def model(body: dict[str, Any]) -> Answer:
        [answer] = shown(body)
        return {"best": "[[10]]", "worst": "1/10", "odd": "[[eleven]]"}.get(answer, 503)

    async with serving(model) as server:
        judge = Judge(settings(server.url, votes=2, retries=0))
        scorer = JudgeScorer(judge=judge, weight=1.0)

        def ask(*completions: str) -> list[float | None]:
            return score_rows(scorer, ["q"] * len(completions), completions, {})

        assert await asyncio.to_thread(ask, "best", "worst", "odd") == [1.0, -1.0, None]
        with pytest.raises(InvalidRequest, match=r"^row 2: reward judge raised Unavailable"):
            await asyncio.to_thread(ask, "best", "away")


async def test_a_judge_is_one_scorer_of_several() -> None:
    async with serving(likes_long) as server:
        scoring = build(
            functions=["support.reward_parts:by_length"],
            judge=settings(server.url),
            weights={"judge": 9.0},
        )
        rewards = await asyncio.to_thread(scoring.rewards, ["q"], ["four"], {})
    assert rewards == pytest.approx([4 + 9 * (4 - 5.5) / 4.5])


async def test_what_our_own_policy_says_as_judge_is_not_learned_from() -> None:
    async with running_gateway() as stack:
        stack.generation.pieces = ("[[", "1", "]]")
        async with judging(f"{stack.url}/v1", model="tuneloop") as judge:
            assert (await judge.compare("why?", "a", "b")).votes == 1
        assert isinstance(stack.generation, FakeGeneration)
        assert [request.publish_rollout for request in stack.generation.requests] == [False, False]
