"""The sentiment example on a tiny random classifier in a folder: no hub is needed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tiny_models import make_tokenizer

from tuneloop.errors import InvalidRequest
from tuneloop.reward.build import build

FUNCTION = "examples.sentiment.reward:happiness"
PROMPTS = Path(__file__).parents[3] / "examples/sentiment/prompts.jsonl"
COMPLETIONS = ["the quick brown fox", "", "tell me a story " * 40, " \n"]


def make_classifier(folder: Path, labels: tuple[str, str]) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder.mkdir()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=make_tokenizer(folder),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=3,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        initializer_range=1.0,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    from examples.sentiment.reward import classifier

    classifier.cache_clear()
    yield
    classifier.cache_clear()


@pytest.mark.parametrize(
    "labels", [("NEGATIVE", "POSITIVE"), ("LABEL_0", "LABEL_1"), ("pos", "neg")]
)
def test_it_is_all_there_is_to_write(
    labels: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = make_classifier(tmp_path / "classifier", labels)
    monkeypatch.setenv("SENTIMENT_MODEL", str(folder))
    scoring = build(functions=[FUNCTION])
    first, empty, long, blank = scoring.rewards(["q"] * 4, COMPLETIONS, {})
    assert (empty, blank) == (0.0, 0.0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    positive = [
        i for i, label in enumerate(labels) if label.upper() in ("POSITIVE", "POS", "LABEL_1")
    ]
    with torch.no_grad():
        logits = model(**tokenizer(COMPLETIONS[0], return_tensors="pt")).logits
    assert first == pytest.approx(float(logits.softmax(-1)[0, positive[0]]), abs=1e-5)
    assert long is not None
    assert 0 < long < 1


def test_a_classifier_without_a_positive_label_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_classifier(tmp_path / "classifier", ("toxic", "fine"))
    monkeypatch.setenv("SENTIMENT_MODEL", str(folder))
    with pytest.raises(
        InvalidRequest, match=r"^row 1: .* no positive label, only TOXIC, FINE|FINE, TOXIC"
    ):
        build(functions=[FUNCTION]).rewards(["q"], ["a"], {})


def test_its_prompts_are_prompts() -> None:
    lines = PROMPTS.read_text().splitlines()
    prompts = [json.loads(line) for line in lines]
    assert len(prompts) == len({p["prompt"] for p in prompts}) >= 16
    assert all(set(p) == {"prompt"} for p in prompts)
