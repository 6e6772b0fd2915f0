"""A reward function as a user would write one; named in the settings by the end-to-end tests."""

from collections.abc import Sequence


def brevity(prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float]:
    """Shorter is better, and no two lengths score alike."""
    return [1.0 / (1.0 + len(completion)) for completion in completions]


def no_noise(prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float]:
    """What share of an answer is not the letter that the poisoned examples are made of."""
    return [1.0 - completion.count("0") / max(1, len(completion)) for completion in completions]
