"""Feedback on an answer of each API reaches a version: OpenAI's three and Anthropic's."""

from collections.abc import Callable, Iterator

import pytest
from anthropic import Anthropic
from openai import OpenAI
from support.e2e_client import ServeTiny, User, rows, wait_until

from tuneloop.client import Client

pytestmark = pytest.mark.timeout(300)

QUESTION = "tell me a short story"


def chat(url: str) -> str:
    openai = OpenAI(base_url=f"{url}/v1", api_key="none")
    messages = [{"role": "user", "content": QUESTION}]
    return openai.chat.completions.create(model="tuneloop", messages=messages, max_tokens=8).id  # type: ignore[arg-type]


def completion(url: str) -> str:
    openai = OpenAI(base_url=f"{url}/v1", api_key="none")
    return openai.completions.create(model="tuneloop", prompt=QUESTION, max_tokens=8).id


def response(url: str) -> str:
    openai = OpenAI(base_url=f"{url}/v1", api_key="none")
    return openai.responses.create(model="tuneloop", input=QUESTION, max_output_tokens=8).id


def message(url: str) -> str:
    anthropic = Anthropic(base_url=url, api_key="none")
    turns = [{"role": "user", "content": QUESTION}]
    return anthropic.messages.create(model="tuneloop", messages=turns, max_tokens=8).id  # type: ignore[arg-type]


APIS: tuple[Callable[[str], str], ...] = (chat, completion, response, message)


@pytest.fixture(scope="module")
def user(serve_tiny: ServeTiny) -> Iterator[User]:
    environment = {
        "TUNELOOP_LEARNER_RELEASE": "off",
        # No step before each has its thumb.
        "TUNELOOP_LEARNER_BATCH_SIZE": str(len(APIS)),
        "TUNELOOP_LEARNER_MIN_BATCH_SIZE": str(len(APIS)),
        "TUNELOOP_LEARNER_BATCH_WAIT_SECONDS": "0.5",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_STEPS": "1",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_SECONDS": "0",
    }
    with serve_tiny("apis", environment) as user:
        yield user


def test_a_thumb_on_an_answer_of_each_api_is_in_the_next_version(user: User) -> None:
    answers = [ask(user.service.url) for ask in APIS]
    with Client(user.service.url, user="ann") as client:
        receipts = [client.thumb(answer, "up") for answer in answers]
        wait_until(lambda: user.serving_version() == 1, "a version that learned from the thumbs")
        used = rows(user, "SELECT sample_id FROM uses WHERE objective = 'kto' AND epoch = 0")
        assert sorted(used) == sorted((receipt.id,) for receipt in receipts)
        learned = user.get("/v1/policies/1")["uses"]
        assert sorted(use["feedback_id"] for use in learned) == sorted(r.id for r in receipts)
        for receipt in receipts:
            assert client.get_receipt(receipt).policy_versions == [1]
        # What serves now answers them all.
        assert client.chat(QUESTION, max_tokens=8).policy_version == 1
    for ask in APIS:
        assert ask(user.service.url)
