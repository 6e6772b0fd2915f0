"""An edited answer as the tokens the policy would have sampled for it."""

from collections.abc import Sequence
from pathlib import Path

from tuneloop.generation.prompts import Tokenization


class EditTokenizer:
    """Tokenizes answers with the policy's tokenizer."""

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer from the model's folder."""
        self._tokenization = Tokenization(folder)

    def __call__(self, text: str, original: Sequence[int]) -> tuple[int, ...]:
        """Token ids of `text`, ended as the original answer was.

        A user's text never becomes a special token, whatever it spells. An original that was cut
        off says nothing of how to end: the tokenizer's end of sequence does then.
        """
        tokenizer = self._tokenization.tokenizer
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        stops = self._tokenization.stop_token_ids
        ends = original[-1] if original and original[-1] in stops else tokenizer.eos_token_id
        return (*ids, ends) if ends is not None else tuple(ids)
