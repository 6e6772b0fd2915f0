"""The reward model's one class: new heads, encoding, saving, and what is not a reward model."""

from pathlib import Path

import pytest
import torch

from tuneloop.errors import CorruptData
from tuneloop.models.reward_model import RewardModel, load
from tuneloop.rollouts import ChatMessage, prompt_as_text

PROMPTS = ["what is the capital of France?", "yes", "tell me a story", "hello world"]
COMPLETIONS = ["Paris.", "no", "the quick brown fox jumps over the lazy dog " * 4, ""]


@pytest.fixture(params=["encoder", "language model"])
def backbone(request: pytest.FixtureRequest, tiny_policy: Path, tiny_reward_model: Path) -> Path:
    return tiny_reward_model if request.param == "encoder" else tiny_policy


def with_random_head(folder: Path) -> RewardModel:
    model = load(folder)
    generator = torch.Generator().manual_seed(1)
    for parameter in list(model.module.parameters())[-2:]:
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def test_a_new_head_scores_everything_zero(backbone: Path) -> None:
    model = load(backbone)
    assert not model.trained
    assert model.score(PROMPTS, COMPLETIONS) == [0.0] * 4


def test_scores_do_not_depend_on_the_batch(backbone: Path) -> None:
    model = with_random_head(backbone)
    together = model.score(PROMPTS, COMPLETIONS)
    alone = [model.score([p], [c])[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({round(score or 0, 4) for score in together}) == 4


def test_many_rows_keep_their_order(tiny_reward_model: Path) -> None:
    model = with_random_head(tiny_reward_model)
    texts = ["word " * (1 + row * 7 % 20) for row in range(40)]
    together = model.score(["q"] * 40, texts)
    for row in (0, 13, 39):
        assert together[row] == pytest.approx(model.score(["q"], [texts[row]])[0], abs=1e-5)


def test_what_is_too_long_is_not_scored_and_not_cut(tiny_reward_model: Path) -> None:
    model = with_random_head(tiny_reward_model)
    assert model.max_length == 256, "the tiny model has 256 positions"
    scores = model.score(["q", "q"], ["short", "word " * 500])
    assert scores[0] is not None
    assert scores[1] is None
    [kept] = load(tiny_reward_model, max_length=40).encode(["q"], ["short"])
    assert kept is not None
    length = len(kept["input_ids"])
    assert load(tiny_reward_model, max_length=length).encode(["q"], ["short"]) == [kept]
    assert load(tiny_reward_model, max_length=length - 1).encode(["q"], ["short"]) == [None]


def test_nothing_to_score_gives_nothing(tiny_reward_model: Path) -> None:
    assert load(tiny_reward_model).score([], []) == []


def test_a_saved_model_scores_the_same(backbone: Path, tmp_path: Path) -> None:
    model = with_random_head(backbone)
    model.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.trained
    assert again.shapes() == model.shapes()
    assert again.score(PROMPTS, COMPLETIONS) == model.score(PROMPTS, COMPLETIONS)


def test_plain_transformers_loads_what_was_saved(tiny_reward_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    with_random_head(tiny_reward_model).save(tmp_path / "saved")
    module, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert module.config.num_labels == 1
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_a_new_head_is_the_same_for_everybody(tiny_reward_model: Path) -> None:
    torch.manual_seed(1)
    first = load(tiny_reward_model).module.state_dict()
    torch.manual_seed(2)
    second = load(tiny_reward_model).module.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gradients_reach_the_head(tiny_reward_model: Path) -> None:
    model = load(tiny_reward_model)
    encodings = [e for e in model.encode(["q"] * 2, ["a", "b b"]) if e is not None]
    model.forward(encodings).sum().backward()
    assert model.module.classifier.weight.grad.abs().sum() > 0


def test_folders_that_are_no_reward_model_are_refused(
    tiny_reward_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    with pytest.raises(CorruptData, match="absent"):
        load(tmp_path / "absent")
    model = load(tiny_reward_model)
    three = AutoModelForSequenceClassification.from_pretrained(tiny_reward_model, num_labels=3)
    three.save_pretrained(tmp_path / "three")
    model.tokenizer.save_pretrained(tmp_path / "three")
    with pytest.raises(CorruptData, match="three"):
        load(tmp_path / "three")
    model.save(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CorruptData, match="cut"):
        load(tmp_path / "cut")


def test_a_backbone_with_a_hole_is_refused(tiny_reward_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    load(tiny_reward_model).save(tmp_path / "holed")
    weights = load_file(tmp_path / "holed" / "model.safetensors")
    hole = next(name for name in weights if "layer.1" in name)
    del weights[hole]
    save_file(weights, tmp_path / "holed" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptData, match=hole):
        load(tmp_path / "holed")


def test_prompts_are_plain_text() -> None:
    question = ChatMessage(role="user", content="why?")
    assert prompt_as_text([], "once upon") == "once upon"
    assert prompt_as_text([question], "<|im_start|>why?") == "why?"
    system = ChatMessage(role="system", content="be brief")
    assert prompt_as_text([system, question]) == "system: be brief\nuser: why?"
