"""Whether a prompt with its completion fits the reward model: long before the model is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneloop.learner.offline.fields import Fields
from tuneloop.learner.offline.tokens import TooLong, context_length
from tuneloop.models.reward_model import encode


class TextLengths:
    """Measures texts with a reward model's tokenizer."""

    def __init__(self, folder: Path, *, max_length: int) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._limit = min(max_length, context_length(folder))

    def check(self, row: Fields, prompt: str, completions: Sequence[str]) -> None:
        """Raise `TooLong` naming the row where a completion does not fit with its prompt."""
        for completion in completions:
            length = len(encode(self._tokenizer, prompt, completion)["input_ids"])
            if length > self._limit:
                raise TooLong(row, f"{length} tokens in prompt and completion", self._limit)
