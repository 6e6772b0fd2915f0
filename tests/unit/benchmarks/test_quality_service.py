"""The benchmark of learning from thumbs through the service: its pieces, without a service."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.quality_crowd import JUDGED, MEASURED, REQUESTS, Crowd, is_liked, words_in
from benchmarks.quality_live import THUMBS
from benchmarks.quality_service import is_finished, make_models, points_of, score_at
from benchmarks.quality_task import END
from tuneloop.generation.prompts import Tokenization
from tuneloop.models.reward_model import encode_text, load


def test_an_answer_is_liked_for_most_of_its_nine_words() -> None:
    text = "w1 w3 w5 w7 w9 w2 w4 w6 <unk>"
    assert words_in(text) == [1, 3, 5, 7, 9, 2, 4, 6, 62]
    assert is_liked((7, 2, 2, 2), text)
    assert not is_liked((8, 1, 1, 1), text)
    with pytest.raises(ValueError, match="has 8 words"):
        is_liked((7, 2, 2, 2), "w1 w3 w5 w7 w9 w2 w4 w6")


def test_scores_between_points_of_a_curve_are_interpolated() -> None:
    curve = [[0, 0.5], [10, 0.7], [30, 0.9]]
    assert score_at(curve, 5) == pytest.approx(0.6)
    assert score_at(curve, 20) == pytest.approx(0.8)
    assert score_at(curve, 30) == 0.9
    assert score_at(curve, 31) is None
    assert score_at([], 0) is None


def test_the_last_round_is_measured() -> None:
    assert points_of(540 * THUMBS) == {68, 135, 202, 270, 338, 405, 472, 540}
    assert points_of(3 * THUMBS) == {1, 2, 3}
    assert points_of(1) == {1}


def test_a_run_with_other_settings_is_another_run() -> None:
    run = {"seed": 0, "thumbs": 32, "settings": {"A": "1"}, "rows": []}
    assert is_finished(run, {"seed": 0, "thumbs": 32, "settings": {"A": "1"}})
    assert not is_finished(run, {"seed": 0, "thumbs": 32, "settings": {"A": "2"}})


def test_only_the_end_token_ends_and_the_reader_sees_every_word(tmp_path: Path) -> None:
    settings = make_models(tmp_path, 0)
    tokenization = Tokenization(Path(settings["TUNELOOP_SUPERVISOR_MODEL"]))
    assert tokenization.stop_token_ids == {END}
    answer = tokenization.decode([1, 2, 62, 3])
    assert answer == "w1 w2 <unk> w3"
    reader = load(Path(settings["TUNELOOP_SUPERVISOR_REWARD_MODEL"]))
    encoded = encode_text(reader.tokenizer, "w4 w5", answer)
    assert encoded["input_ids"] == [4, 5, 1, 2, 62, 3, END]


def test_each_thumb_of_a_round_is_another_users() -> None:
    thumbs: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content or b"{}")
        if request.url.path == "/v1/feedback":
            thumbs.append(body)
            return httpx.Response(202, json={})
        asked.append(body)
        odd = {"completion_id": f"odd-{len(asked)}", "text": " ".join(["w1"] * 9)}
        even = {"completion_id": f"even-{len(asked)}", "text": " ".join(["w2"] * 9)}
        return httpx.Response(200, json={"choices": [odd, even, odd, even]})

    async def run() -> int:
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(base_url="http://test", transport=transport) as client:
            crowd = Crowd(client, seed=0)
            await crowd.round()
            return crowd.thumbs

    assert asyncio.run(run()) == THUMBS == JUDGED * REQUESTS
    assert len({thumb["user"] for thumb in thumbs}) == THUMBS
    assert sum(thumb["value"] == "up" for thumb in thumbs) == THUMBS // 2
    prompts = {tuple(words_in(body["prompt"])) for body in asked}
    assert len(prompts) == REQUESTS
    assert not prompts & MEASURED
