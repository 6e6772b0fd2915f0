"""Backbones of the reward model: where they are pooled, how they are cut, how they are served."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from support.reward_parts import Publisher, make_decoder

from tuneloop.bus.memory import MemoryBus
from tuneloop.errors import CorruptData, InvalidRequest
from tuneloop.learner.models.lora import merged_weights
from tuneloop.learner.models.reward import head_name
from tuneloop.learner.samples import (
    LabelledText,
    PreferredText,
    RankedText,
    RatedText,
    RewardSample,
)
from tuneloop.learner.trainer.reward_model import RewardTrainer
from tuneloop.learner.trainer.settings import RewardTrainerSettings
from tuneloop.models.reward_model import RewardModel, load
from tuneloop.policies import WeightsKind
from tuneloop.reward.scorer import ScoringInput
from tuneloop.reward.scorers.reward_model import base_scorer
from tuneloop.reward.scoring import Scoring
from tuneloop.reward.swap import RewardModelSwap, RewardSwapOptions
from tuneloop.weights.shapes import base_model_sha256

FAMILIES = ("llama", "qwen2", "gpt2")
PROMPTS = ["what is the capital of France?", "yes", "tell me a story", "hello world"]
COMPLETIONS = ["Paris.", "no", "the quick brown fox jumps over the lazy dog " * 2, ""]


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("decoders")
    return {family: make_decoder(folder / family, family) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def decoder(request: pytest.FixtureRequest, decoders: dict[str, Path]) -> Path:
    return decoders[request.param]


def randomise_head(model: RewardModel) -> RewardModel:
    generator = torch.Generator().manual_seed(1)
    weight = model.module.get_submodule(head_name(model.module)).weight
    weight.data.copy_(torch.randn(weight.shape, generator=generator))
    return model


SAMPLES: list[RewardSample] = [
    LabelledText(sample_id="t1", prompt=PROMPTS[0], completion="Paris.", desirable=True),
    LabelledText(sample_id="t2", prompt=PROMPTS[0], completion="no", desirable=False, weight=0.5),
    PreferredText(sample_id="p1", prompt="tell me", chosen="the fox", rejected="dog " * 9),
    PreferredText(sample_id="p2", prompt="yes", chosen="a", rejected="a b", margin=0.5, weight=2.0),
    RankedText(sample_id="r1", prompt="say", completions=("one", "the sea", "yes no", "")),
    RankedText(sample_id="r2", prompt="say", completions=("a river", "one two three")),
    RatedText(sample_id="s1", prompt="hello", completion="world", rating=1.5),
    RatedText(sample_id="s2", prompt="hello", completion="no no no", rating=-0.5),
]


def make_trainer(folder: Path, **options: Any) -> RewardTrainer:
    trainer = RewardTrainer(folder, RewardTrainerSettings(threads=1, **options))
    return trainer


def in_float64(folder: Path, **options: Any) -> RewardTrainer:
    """A trainer in float64 whose head is not zero, so that the backbone has gradients at once."""
    trainer = make_trainer(folder, **options)
    randomise_head(trainer._model).module.double()
    return trainer


def test_texts_end_with_the_end_token_once(decoder: Path) -> None:
    model = load(decoder)
    end = model.tokenizer.eos_token_id
    for completion in ("", "Paris.", "Paris.\n"):
        [encoded] = model.encode(["why?"], [completion])
        assert encoded is not None
        ids = encoded["input_ids"]
        assert ids[-1] == end
        assert ids[-2:] != [end, end]
        assert model.module.config.pad_token_id != end


def test_the_score_is_that_of_the_end_token(decoder: Path) -> None:
    model = randomise_head(load(decoder))
    scores = model.score(PROMPTS, COMPLETIONS)
    for prompt, completion, score in zip(PROMPTS, COMPLETIONS, scores, strict=True):
        [encoded] = model.encode([prompt], [completion])
        assert encoded is not None
        with torch.no_grad():
            ids = torch.tensor([encoded["input_ids"]])
            states = model.module.base_model(ids).last_hidden_state
            expected = float(model.module.score(states[0, -1]))
        assert score == pytest.approx(expected, abs=1e-5)


def test_plain_transformers_scores_a_saved_model_alike(decoder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = randomise_head(load(decoder))
    model.save(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    [encoded] = model.encode(["why?"], ["because."])
    assert encoded is not None
    ids = torch.tensor([encoded["input_ids"]])
    filler = torch.full((1, 5), plain.config.pad_token_id)
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(filler)], 1)
    with torch.no_grad():
        alone = plain(ids).logits
        padded = plain(torch.cat([ids, filler], 1), attention_mask=mask).logits
    [score] = model.score(["why?"], ["because."])
    assert float(alone) == pytest.approx(score, abs=1e-5)
    assert float(padded) == pytest.approx(score, abs=1e-5)


def test_padding_does_not_change_a_score(decoder: Path) -> None:
    model = randomise_head(load(decoder))
    model.module.double()
    encodings = [e for e in model.encode(PROMPTS, COMPLETIONS) if e is not None]
    with torch.no_grad():
        together = model.forward(encodings)
        alone = torch.cat([model.forward([e]) for e in encodings])
    assert together.dtype == torch.float64
    assert torch.allclose(together, alone, rtol=0, atol=1e-12)


def test_a_tokenizer_without_an_end_is_refused(decoders: dict[str, Path], tmp_path: Path) -> None:
    model = load(decoders["gpt2"])
    model.save(tmp_path)
    model.tokenizer.eos_token = None
    model.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CorruptData, match="no end token"):
        load(tmp_path)


def test_a_sample_that_is_too_long_is_refused_never_cut(decoder: Path) -> None:
    trainer = make_trainer(decoder)
    long = dataclasses.replace(SAMPLES[4], prompt="river " * 200)
    with pytest.raises(InvalidRequest, match="sample r1: more than the 128 tokens that fit"):
        trainer.check("reward_model", long)


def gradients(trainer: RewardTrainer) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The metrics and gradients of one step, before any clip."""
    taken: dict[str, torch.Tensor] = {}
    optimization = trainer._optimizer
    before = optimization.step

    def step(**options: Any) -> Any:
        named = trainer._model.module.named_parameters()
        taken.update({name: p.grad.clone() for name, p in named if p.grad is not None})
        return before(**options)

    optimization.step = step  # type: ignore[method-assign]
    return dict(trainer.step({"reward_model": SAMPLES}).metrics), taken


def check_cuts(folder: Path, exact: float, *, packs: bool, **options: Any) -> None:
    """Compare metrics and gradients of one padded batch with those of other cuts and layouts."""
    whole = in_float64(folder, packing=False, token_budget=100_000, **options)
    metrics, expected = gradients(whole)
    assert expected
    for packing, budget in ((False, 1), (True, 100_000), (True, 60), (True, 1)):
        trainer = in_float64(folder, packing=packing, token_budget=budget, **options)
        assert trainer._scores.packs == (packing and packs)
        found, taken = gradients(trainer)
        assert found == pytest.approx(metrics, rel=exact, abs=exact)
        assert taken.keys() == expected.keys()
        for name, gradient in expected.items():
            assert (taken[name] - gradient).norm() <= exact * (1e-3 + gradient.norm()), name


@pytest.mark.parametrize("ranking_loss", ["pairs", "plackett_luce"])
def test_neither_packing_nor_the_cut_changes_the_gradients(
    decoder: Path, ranking_loss: str
) -> None:
    # Llama's and Qwen's norms compute in float32, whatever they are given; GPT-2's do not.
    exact = 1e-10 if decoder.name == "gpt2" else 1e-5
    check_cuts(decoder, exact, packs=True, ranking_loss=ranking_loss)


def test_nor_does_the_cut_with_an_encoder(tiny_reward_model: Path) -> None:
    check_cuts(tiny_reward_model, 1e-10, packs=False, rating_loss="mse")


def test_nor_does_gradient_checkpointing(decoders: dict[str, Path]) -> None:
    plain, saving = (
        in_float64(decoders["gpt2"], gradient_checkpointing=on) for on in (False, True)
    )
    (metrics, expected), (found, taken) = gradients(plain), gradients(saving)
    assert found == pytest.approx(metrics, rel=1e-12)
    assert all(torch.allclose(taken[name], expected[name], rtol=0, atol=1e-12) for name in expected)


@pytest.fixture(params=[*FAMILIES, "bert"])
def backbone(
    request: pytest.FixtureRequest, decoders: dict[str, Path], tiny_reward_model: Path
) -> Path:
    return decoders.get(request.param, tiny_reward_model)


@pytest.mark.parametrize("kind", list(WeightsKind))
def test_the_service_scores_as_the_trainer_computes(
    backbone: Path, tmp_path: Path, kind: WeightsKind
) -> None:
    trainer = make_trainer(backbone, kind=kind, learning_rate=3e-3, head_learning_rate=1e-2)
    for _ in range(4):
        trainer.step({"reward_model": SAMPLES})
    trainer.save_weights(tmp_path / "trained")
    scorer = base_scorer(tmp_path / "trained", max_length=512, weight=1.0)
    assert scorer.informative
    served = Scoring([], scorer).rewards(PROMPTS, COMPLETIONS, {})
    encodings = trainer._model.encode(PROMPTS, COMPLETIONS)
    with torch.no_grad():
        computed = trainer._scores.of([(e,) for e in encodings if e is not None])[:, 0].tolist()
    assert served == pytest.approx(computed, abs=1e-5)
    assert len({round(score, 3) for score in computed}) == 4
    assert scorer.model.shapes() == load(backbone).shapes()


def test_lora_trains_the_adapter_and_the_head_only(decoder: Path) -> None:
    trainer = make_trainer(decoder, kind=WeightsKind.LORA, lora_rank=2)
    names = set(trainer.state().model)
    assert all("lora_" in name or name == "score.weight" for name in names)
    merged = merged_weights(trainer._model.module)
    before = {name: tensor.clone() for name, tensor in merged.items()}
    whole = load(decoder).module.state_dict()
    assert before.keys() == whole.keys()
    assert all(torch.equal(before[name], whole[name]) for name in whole), "B is 0 at first"
    trainer.step({"reward_model": SAMPLES})
    trainer.step({"reward_model": SAMPLES})
    after = merged_weights(trainer._model.module)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert "score.weight" in changed
    assert len(changed) > 8, "every linear layer has an adapter"
    assert not any("embed" in name or "wte" in name for name in changed)


@pytest.mark.slow
def test_every_kind_is_learned_and_resumed(decoders: dict[str, Path]) -> None:
    options = {"learning_rate": 2e-3, "head_learning_rate": 2e-2}
    trainer = make_trainer(decoders["qwen2"], **options)
    first = trainer.step({"reward_model": SAMPLES}).metrics
    expected = {"thumb_loss", "pair_loss", "ranking_loss", "rating_loss"}
    assert expected <= first.keys()
    for _ in range(60):
        trainer.step({"reward_model": SAMPLES})
    again = make_trainer(decoders["qwen2"], **options)
    again.load_state(trainer.state())
    last = trainer.step({"reward_model": SAMPLES}).metrics
    assert all(last[name] < 0.7 * first[name] for name in expected), last
    assert last["accuracy"] == 1.0
    assert again.step({"reward_model": SAMPLES}).metrics == last


def test_a_ranking_needs_two_answers(decoders: dict[str, Path]) -> None:
    trainer = make_trainer(decoders["llama"])
    with pytest.raises(InvalidRequest, match="sample r1: a ranking of 1 answers"):
        trainer.check("reward_model", RankedText(sample_id="r1", prompt="q", completions=("a",)))
    with pytest.raises(InvalidRequest, match="sample s1: rating nan"):
        trainer.check("reward_model", dataclasses.replace(SAMPLES[6], rating=float("nan")))


async def test_a_decoder_is_swapped_in_while_scoring(
    decoders: dict[str, Path], tmp_path: Path
) -> None:
    base_folder = decoders["gpt2"]
    publisher = Publisher(base_folder, tmp_path)
    base = base_scorer(base_folder, max_length=512, weight=1.0)
    scoring = Scoring([], base)
    options = RewardSwapOptions(
        policy="tuneloop",
        base_model_sha256=base_model_sha256(base_folder),
        min_labels=32,
        min_accuracy=0.65,
    )
    swap = RewardModelSwap(
        bus=MemoryBus(), store=publisher.store(), scoring=scoring, base=base, options=options
    )
    trainer = make_trainer(base_folder, kind=WeightsKind.LORA, head_learning_rate=0.05)
    for _ in range(3):
        trainer.step({"reward_model": SAMPLES})
    trainer.save_weights(tmp_path / "trained")
    await swap.activate(publisher.publish(1, bias=0.0, folder=tmp_path / "trained"))
    assert scoring.reward_model_version == 1
    [score] = scoring.score([ScoringInput(prompt="hello", completion="world")]).scores
    assert score.informative
    [expected] = load(tmp_path / "trained").score(["hello"], ["world"])
    assert score.reward == expected != 0.0
