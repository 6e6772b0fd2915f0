"""A reward function as a user would write one; named in the settings by the end-to-end tests."""

from collections.abc import Sequence


def brevity(prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float]:
    """Shorter is better, and no two lengths score alike."""
    return [1.0 / (1.0 + len(completion)) for completion in completions]
