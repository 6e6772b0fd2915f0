"""The loop through the real processes: nats-server, vLLM, reward, learner, gateway."""

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from support.e2e_client import (
    ServeTiny,
    User,
    read_stream,
    wait_until,
    wait_until_each_thumb_is_used_once,
)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def user(serve_tiny: ServeTiny) -> Iterator[User]:
    environment = {
        # Versions are served as they come; the gate has a test of its own.
        "TUNELOOP_LEARNER_RELEASE": "off",
        "TUNELOOP_LEARNER_BATCH_SIZE": "4",
        "TUNELOOP_LEARNER_BATCH_WAIT_SECONDS": "0.5",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_STEPS": "1",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_SECONDS": "0",
        "TUNELOOP_LEARNER_LEARNING_RATE": "1e-3",
        "TUNELOOP_GENERATION_KV_CACHE_GIB": "0.25",
    }
    with serve_tiny("loop", environment, engine="vllm") as user:
        yield user


def generation_pid(user: User) -> int:
    return int(user.service.run_state()["processes"]["generation"]["pid"])


def test_thumbs_raise_the_version_of_the_same_generation_process(user: User) -> None:
    pid = generation_pid(user)
    assert user.chat()["policy_version"] == 0
    user.chat_and_press(8)
    wait_until(lambda: user.chat()["policy_version"] >= 1, "an answer from new weights")
    assert generation_pid(user) == pid
    assert user.service.run_state()["processes"]["generation"]["restarts"] == 0
    wait_until_each_thumb_is_used_once(user)


def test_lineage_names_the_thumbs_and_the_dates(user: User) -> None:
    wait_until(lambda: user.get("/v1/policies/1")["activated_time"] is not None, "activation known")
    version = user.get("/v1/policies/1")
    used = {use["sample_id"] for use in version["uses"]}
    assert used
    assert used <= set(user.acknowledged)
    assert version["manifest"]["data"]["samples"]["kto"] == len(used)
    assert version["parent_version"] == 0


def test_openai_client_streams_text_and_version(user: User) -> None:
    client = openai.OpenAI(base_url=f"{user.service.url}/v1", api_key="none")
    stream = client.chat.completions.create(
        model="tuneloop",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=12,
        stream=True,
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert chunks[0].model_extra is not None
    assert chunks[0].model_extra["policy_version"] >= 1


def test_five_swaps_under_eight_streams_lose_nothing(user: User) -> None:
    stop = threading.Event()
    streams: list[list[dict[str, Any]]] = []
    problems: list[BaseException] = []

    def client_loop(number: int) -> None:
        with httpx.Client() as client:
            while not stop.is_set():
                try:
                    streams.append(read_stream(client, user.service.url, f"story {number}"))
                except (AssertionError, httpx.HTTPError) as error:
                    problems.append(error)

    threads = [threading.Thread(target=client_loop, args=(n,)) for n in range(8)]
    first = user.serving_version()
    for thread in threads:
        thread.start()
    try:
        for swap in range(5):
            user.chat_and_press(4)
            wanted = first + swap + 1
            wait_until(lambda wanted=wanted: user.serving_version() >= wanted, f"swap {swap + 1}")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert problems == []
    assert len(streams) >= 8
    for chunks in streams:
        assert not any("error" in chunk for chunk in chunks)
        assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
        assert {chunk["policy_version"] for chunk in chunks} != {None}
    served = {chunks[0]["policy_version"] for chunks in streams}
    assert max(served) - min(served) >= 4
    wait_until_each_thumb_is_used_once(user)


def test_comparison_is_learned_by_dpo(user: User) -> None:
    body = user.chat("compare", n=2)
    chosen, rejected = (choice["completion_id"] for choice in body["choices"])
    response = httpx.post(
        f"{user.service.url}/v1/feedback",
        json={
            "kind": "comparison",
            "completion_id": chosen,
            "chosen": chosen,
            "rejected": [rejected],
        },
    )
    assert response.status_code == 202, response.text

    def used() -> bool:
        samples = {s["objective"]: s["used"] for s in user.get("/v1/learner")["samples"]}
        return samples["dpo"] >= 1

    wait_until(used, "a DPO step")


def all_ready(user: User) -> bool:
    return all(process["ready"] for process in user.service.run_state()["processes"].values())


def test_metrics_of_every_process_tell_the_story(user: User) -> None:
    wait_until(lambda: all_ready(user), "the reward service and the learner are up as well")
    state = user.service.run_state()["processes"]

    def scored() -> bool:
        page = httpx.get(f"http://127.0.0.1:{state['reward']['metrics_port']}/metrics").text
        lines = [line for line in page.splitlines() if line.startswith("tuneloop_reward_rollouts_")]
        return any(float(line.rsplit(" ", 1)[1]) >= 1 for line in lines if "_total" in line)

    wait_until(scored, "the reward service has scored what was generated")
    pages = {
        name: httpx.get(f"http://127.0.0.1:{state[name]['metrics_port']}/metrics").text
        for name in ("generation", "reward", "learner")
    }
    pages["gateway"] = httpx.get(f"{user.service.url}/metrics").text
    expected = {
        "gateway": [
            "tuneloop_gateway_feedback_accepted_total",
            "tuneloop_gateway_time_to_first_token_seconds_count",
        ],
        "generation": [
            "tuneloop_policy_version",
            "tuneloop_swap_seconds_count",
            "tuneloop_inter_token_latency_seconds_count",
            "tuneloop_rollouts_published_total",
            "tuneloop_feedback_to_serving_seconds_count",
        ],
        "reward": ["tuneloop_reward_rollouts_total"],
        "learner": [
            "tuneloop_learner_feedback_consumed_total",
            "tuneloop_learner_loss",
            "tuneloop_learner_gradient_norm",
            "tuneloop_learner_feedback_to_serving_seconds_count",
        ],
    }
    for process, names in expected.items():
        for name in names:
            values = [
                float(line.rsplit(" ", 1)[1])
                for line in pages[process].splitlines()
                if line.startswith((name + " ", name + "{"))
            ]
            assert values, f"{name} is not exported by {process}"
            assert any(values), f"{name} of {process} never moved"
