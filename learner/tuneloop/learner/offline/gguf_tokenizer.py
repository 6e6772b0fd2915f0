r"""A tokenizer as a GGUF file has it: tokens, merges, special tokens, chat template.

A GGUF does not say how text is split before it is merged, but names one of the ways that llama.cpp
knows (`tokenizer.ggml.pre`). The name is found from the way itself, so that it holds for every
vocabulary: a tokenizer that splits in none of these ways is refused.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneloop.errors import FailedPrecondition, WeightsRefused

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{PUNCTUATION}"
LLAMA3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{PUNCTUATION}"
WAYS_TO_SPLIT = {
    # Steps before merging, and whether a whole token is taken without merging.
    ((("ByteLevel", True),), False): "gpt-2",
    ((("Digits", True), ("ByteLevel", True)), False): "smollm",
    ((("Split", QWEN2), ("ByteLevel", False)), False): "qwen2",
    ((("Split", LLAMA3), ("ByteLevel", False)), True): "llama-bpe",
}
"""llama.cpp's name of each, in `src/llama-vocab.cpp`."""
NO_SCORE = -1000.0
"""Of tokens that are never merged."""


def write_tokenizer(writer: Any, folder: Path, rows: int) -> None:
    """Add the tokenizer of a model folder to a `gguf.GGUFWriter`.

    `rows` is the number of embeddings: tokens are made up for those that have none. Raises
    `WeightsRefused` for a tokenizer that llama.cpp has no name for, `FailedPrecondition` where a
    package is missing that reads it.
    """
    import gguf
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    pipeline = {} if backend is None else json.loads(backend.to_str())
    by_bytes = is_by_bytes(pipeline)
    tokens: Sequence[str | bytes]
    if by_bytes:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(way_to_split(pipeline, folder))
        tokens, kinds = byte_level_tokens(tokenizer, rows)
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        tokens, scores, kinds = sentencepiece_tokens(folder, tokenizer, rows)
        writer.add_token_scores(scores)
        writer.add_add_space_prefix(tokenizer.tokenize("a")[0].startswith("▁"))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    with tempfile.TemporaryDirectory() as scratch:
        # As one kind of files, whichever the model came with.
        tokenizer.save_pretrained(scratch)
        shutil.copyfile(folder / "config.json", Path(scratch) / "config.json")
        special = gguf.SpecialVocab(scratch, load_merges=by_bytes, n_vocab=rows)
    ids = tokenizer("a").input_ids
    special.add_special_token["bos"] = ids[0] == tokenizer.bos_token_id
    special.add_special_token["eos"] = ids[-1] == tokenizer.eos_token_id
    special.special_token_ids |= further_ends(folder, special.special_token_ids.get("eos"))
    special.add_to_gguf(writer, quiet=True)


def is_by_bytes(pipeline: dict[str, Any]) -> bool:
    """Return whether a tokenizer merges bytes (GPT-2 and after), not pieces of SentencePiece."""
    model = pipeline.get("model") or {}
    decoder = (pipeline.get("decoder") or {}).get("type")
    return model.get("type") == "BPE" and not model.get("byte_fallback") and decoder == "ByteLevel"


def way_to_split(pipeline: dict[str, Any], folder: Path) -> str:
    """Return llama.cpp's name for how a byte-level tokenizer splits text; raises `WeightsRefused`.

    That the text is brought into normal form C before is left out, as llama.cpp does for all.
    """
    normalizer = pipeline.get("normalizer")
    steps = pipeline["pre_tokenizer"] or {"type": None}
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    known = normalizer is None or normalizer["type"] == "NFC"
    way = (tuple(map(_step, steps)), bool(pipeline["model"].get("ignore_merges")))
    if not known or way not in WAYS_TO_SPLIT:
        raise WeightsRefused(
            f"{folder}: its tokenizer splits text in a way that has no name here; export it with "
            "--format merged and convert that with llama.cpp's convert_hf_to_gguf.py",
            param="format",
        )
    return WAYS_TO_SPLIT[way]


def _step(step: dict[str, Any]) -> tuple[str, Any]:
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}:
            return "ByteLevel", use_regex
        case {"type": "Digits", "individual_digits": each}:
            return "Digits", each
        case {
            "type": "Split",
            "pattern": {"Regex": regex},
            "behavior": "Isolated",
            "invert": False,
        }:
            return "Split", regex
    return str(step["type"]), None


def byte_level_tokens(tokenizer: Any, rows: int) -> tuple[list[str], list[int]]:
    """Return every token as the vocabulary spells it, and its `gguf.TokenType`."""
    from gguf import TokenType

    text_of = {number: text for text, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, kinds = [], []
    for number in range(rows):
        tokens.append(text_of.get(number, f"[PAD{number}]"))
        if number not in text_of:
            kinds.append(TokenType.UNUSED)
        elif number in added:
            kinds.append(TokenType.CONTROL if added[number].special else TokenType.USER_DEFINED)
        else:
            kinds.append(TokenType.NORMAL)
    return tokens, kinds


def sentencepiece_tokens(
    folder: Path, tokenizer: Any, rows: int
) -> tuple[list[bytes], list[float], list[int]]:
    """Return every token of `tokenizer.model` and those added to it, its score and its type."""
    import gguf

    if not (folder / "tokenizer.model").is_file():
        raise WeightsRefused(
            f"{folder}: its tokenizer is one of SentencePiece, whose file tokenizer.model is not "
            "there; put the file of the base model into its folder",
            param="weights",
        )
    try:
        import sentencepiece  # noqa: F401
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            'the tokenizer needs the package sentencepiece: pip install "tuneloop[gguf]"',
            param="format",
        ) from error
    tokens = [f"[PAD{number}]".encode() for number in range(rows)]
    scores = [NO_SCORE] * rows
    kinds: list[int] = [gguf.TokenType.UNUSED] * rows
    vocabulary = gguf.SentencePieceVocab(folder).sentencepiece_tokens()
    for number, (text, score, kind) in enumerate(vocabulary):
        tokens[number], scores[number], kinds[number] = text, score, kind
    for number, token in tokenizer.added_tokens_decoder.items():
        tokens[number], scores[number] = token.content.encode(), NO_SCORE
        if kinds[number] != gguf.TokenType.UNKNOWN:
            kind = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
            kinds[number] = kind
    return tokens, scores, kinds


def further_ends(folder: Path, end: int | None) -> dict[str, int]:
    """Return the tokens besides `end` at which generation stops: ends of a turn, of a message."""
    path = folder / "generation_config.json"
    ends = json.loads(path.read_bytes()).get("eos_token_id") if path.is_file() else None
    others = [number for number in ends if number != end] if isinstance(ends, list) else []
    return dict(zip(("eot", "eom"), others, strict=False))
