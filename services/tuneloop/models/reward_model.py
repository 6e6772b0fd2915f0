"""The reward model: any sequence classifier with one output, for scoring and for training.

A folder holds such a classifier, or a backbone without a head (a sentence encoder, a language
model). A backbone gets a new head of zeros: it scores everything 0 until it is trained. Saved
folders are plain `AutoModelForSequenceClassification` folders.

An encoder reads prompt and completion as a pair and pools as its class does (mean or first token).
A language model reads them as a conversation, or as text, followed by its end token, and pools
there: the end token has seen everything.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from tuneloop.errors import CorruptData
from tuneloop.models.control_tokens import ControlTokens

MAX_BATCH = 16
DEFAULT_MAX_LENGTH = 512

QUIETLY = {"return_attention_mask": False, "verbose": False}
Encoding = Mapping[str, list[int]]
"""A tokenized text: `input_ids`, and `token_type_ids` if the model has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel:
    """A classifier with one output, its tokenizer, and its longest input."""

    module: Any
    """A `PreTrainedModel` in evaluation mode."""
    tokenizer: Any
    max_length: int
    """Tokens of prompt and completion together, special tokens included."""
    trained: bool
    """False while the head is new."""
    causal: bool
    """Whether it is a language model, which pools at its last token."""

    def encode(self, prompts: Sequence[str], completions: Sequence[str]) -> list[Encoding | None]:
        """Tokenize each prompt with its completion; None if they are too long.

        Nothing is truncated: the score of half an answer would be that of another answer.
        """
        encode = encode_text if self.causal else encode_pair
        pairs = zip(prompts, completions, strict=True)
        encoded = [encode(self.tokenizer, prompt, completion) for prompt, completion in pairs]
        return [e if len(e["input_ids"]) <= self.max_length else None for e in encoded]

    def forward(self, encodings: Sequence[Encoding]) -> torch.Tensor:
        """Return scores, float32 [batch], with gradients if they are enabled.

        They are float64 if the module is. On a GPU the arithmetic is bfloat16.
        """
        device = self.module.device
        fillers = {"input_ids": self.module.config.get_text_config().pad_token_id}
        batch = {
            name: pad_sequence(
                [torch.tensor(encoding[name]) for encoding in encodings],
                batch_first=True,
                padding_value=fillers.get(name, 0),
            ).to(device)
            for name in encodings[0]
        }
        lengths = torch.tensor([len(encoding["input_ids"]) for encoding in encodings])
        places = torch.arange(int(lengths.max()))
        mask = (places < lengths.unsqueeze(1)).long().to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits: torch.Tensor = self.module(**batch, attention_mask=mask).logits
        scores = logits.squeeze(-1)
        return scores if scores.dtype == torch.float64 else scores.float()

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        """Return the score of each completion; None if it is too long."""
        encodings = self.encode(prompts, completions)
        scores: list[float | None] = [None] * len(encodings)
        rows = [row for row, encoding in enumerate(encodings) if encoding is not None]
        # Texts of similar length together waste little on padding.
        rows.sort(key=lambda row: len((encodings[row] or {})["input_ids"]))
        with torch.inference_mode():
            for start in range(0, len(rows), MAX_BATCH):
                chosen = rows[start : start + MAX_BATCH]
                batch = [e for e in (encodings[row] for row in chosen) if e is not None]
                for row, value in zip(chosen, self.forward(batch).tolist(), strict=True):
                    scores[row] = value
        return scores

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write a plain `AutoModelForSequenceClassification` folder with its tokenizer.

        `weights`, if given, replace the module's own.
        """
        with silence_loading():
            self.module.save_pretrained(folder, state_dict=weights)
        self.tokenizer.save_pretrained(folder)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter and buffer by name."""
        return {name: tuple(t.shape) for name, t in self.module.state_dict().items()}


def load(
    folder: Path,
    max_length: int = DEFAULT_MAX_LENGTH,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> RewardModel:
    """Load the reward model in `folder`. Raises `CorruptData` if it is not one.

    `max_length` is lowered to the model's number of position embeddings.
    """
    try:
        with silence_loading():
            config = AutoConfig.from_pretrained(folder, num_labels=1)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            # The values of a new head must not depend on the process that loads it.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                module, report = AutoModelForSequenceClassification.from_pretrained(
                    folder, config=config, dtype=dtype, output_loading_info=True
                )
        # transformers' name for the head of models that pool their last token.
        causal = isinstance(getattr(module, "score", None), torch.nn.Linear)
        padding = filler_token_id(module, tokenizer) if causal else pad_token_id(tokenizer)
        module.config.get_text_config().pad_token_id = module.config.pad_token_id = padding
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CorruptData(f"reward model {folder}: {error}", param="model") from error
    missing = set(report["missing_keys"])
    backbone = sorted(name for name in missing if name.startswith(f"{module.base_model_prefix}."))
    if backbone and not backbone[0].startswith(f"{module.base_model_prefix}.pooler."):
        raise CorruptData(f"reward model {folder}: {backbone[0]} is missing", param="model")
    if missing:
        zero_head(module)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or max_length
    return RewardModel(
        module=module.to(device).eval(),
        tokenizer=tokenizer,
        max_length=min(max_length, positions),
        trained=not missing,
        causal=causal,
    )


def encode_pair(tokenizer: Any, prompt: str, completion: str) -> Encoding:
    """Encode prompt and completion as a pair of texts, for an encoder."""
    return dict(tokenizer(prompt, completion, split_special_tokens=True, **QUIETLY))


@lru_cache(maxsize=4)
def control_tokens_of(tokenizer: Any) -> ControlTokens:
    """Return a tokenizer's control tokens; it has thousands of added ones at times."""
    return ControlTokens(tokenizer)


def encode_text(tokenizer: Any, prompt: str, completion: str) -> Encoding:
    """Encode a conversation if the tokenizer has a template, else two lines; the end token last."""
    if tokenizer.chat_template:
        control_tokens = control_tokens_of(tokenizer)
        aside = control_tokens.aside()
        turns = [
            {"role": "user", "content": aside.put(prompt)},
            {"role": "assistant", "content": aside.put(completion, keep_tags=True)},
        ]
        # Templates append a line break after the end of the last turn.
        text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip()
        ids = list(control_tokens.encode(text, aside))
    else:
        text = f"{prompt}\n{completion}"
        ids = tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, **QUIETLY
        ).input_ids
    if not ids or ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    return {"input_ids": ids}


def pad_token_id(tokenizer: Any) -> int:
    """Return an encoder's padding token."""
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no padding token")
    return int(tokenizer.pad_token_id)


def filler_token_id(module: Any, tokenizer: Any) -> int:
    """Return the token that pads a language model's rows: any but the one they end with.

    It pools the last token that is not padding. If padding were the end token, as with tokenizers
    that lack a padding token, that would be a token of the completion instead.
    """
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if end is None:
        raise ValueError("the tokenizer has no end token")
    known = module.get_input_embeddings().weight.shape[0]
    if pad is not None and pad != end and pad < known:
        return int(pad)
    return 0 if end != 0 else 1


def zero_head(module: Any) -> None:
    """Set the last linear layer to zero, so that a new head scores 0."""
    heads = [m for m in module.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1]
    if not heads:
        raise CorruptData(f"{type(module).__name__} has no head with one output", param="model")
    for parameter in heads[-1].parameters():
        torch.nn.init.zeros_(parameter)


@contextlib.contextmanager
def silence_loading() -> Iterator[None]:
    """Keep progress bars, and warnings about the intended new head, out of the log."""
    logger = logging.getLogger("transformers")
    level, bars = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
