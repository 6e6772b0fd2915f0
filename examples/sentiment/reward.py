"""Happier answers: the reward is what a sentiment classifier says of them.

This function is all there is to write. `SENTIMENT_MODEL` is a hub id or a folder with a
text-classification model; where no hub can be reached, give a folder.
"""

import functools
import os
from typing import Any

from transformers import pipeline

POSITIVE = ("POSITIVE", "POS", "LABEL_1")
"""What classifiers call it; `LABEL_1` is that of models that name nothing."""


@functools.cache
def classifier() -> Any:
    """Load the model once, when the first completion is scored."""
    name = os.environ.get("SENTIMENT_MODEL", "lvwerra/distilbert-imdb")
    return pipeline("text-classification", model=name, top_k=None, truncation=True)


def happiness(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Probability that the completion is positive; 0 for an empty one."""
    filled = [completion for completion in completions if completion.strip()]
    found = iter(classifier()(filled, batch_size=32)) if filled else iter(())
    return [positive(next(found)) if c.strip() else 0.0 for c in completions]


def positive(labels: list[dict[str, Any]]) -> float:
    """The positive label's share."""
    shares = {label["label"].upper(): float(label["score"]) for label in labels}
    for name in POSITIVE:
        if name in shares:
            return shares[name]
    raise ValueError(f"the classifier has no positive label, only {', '.join(shares)}")
