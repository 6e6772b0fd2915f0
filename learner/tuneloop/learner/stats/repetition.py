"""How much an answer repeats itself, as the gate and the alarms count it."""

from collections.abc import Sequence

NGRAM = 4


def repetition(token_ids: Sequence[int]) -> float:
    """Return the share of an answer's 4-grams that occurred in it before; 0 if it has none."""
    grams = [tuple(token_ids[i : i + NGRAM]) for i in range(len(token_ids) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
