"""An exported GGUF answers in llama.cpp as the model does in transformers: the same tokens.

The models are tiny and random, each with what is particular to its family: grouped heads, biases,
norms of heads, an output layer of its own, scaled rotary positions, a window of attention.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.llama_cpp import ask_llama_cpp
from support.tiny_models import CORPUS, make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tuneloop.learner.offline.export import export
from tuneloop.learner.offline.gguf_model import write_gguf
from tuneloop.learner.offline.gguf_tokenizer import WAYS_TO_SPLIT
from tuneloop.learner.offline.versions import Versions
from tuneloop.models.resolve import resolve

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama 3": ("LlamaConfig", {"rope_parameters": LLAMA3_ROPE, "attention_bias": True}),
    "llama with linear positions": ("LlamaConfig", {"rope_parameters": LINEAR}),
    "mistral": ("MistralConfig", {"head_dim": 32, "sliding_window": 128}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2 with yarn": ("Qwen2Config", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "qwen3 moe": (
        "Qwen3MoeConfig",
        {
            "head_dim": 32,
            "num_experts": 12,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
    ),
}
STEPS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "ByteLevel": lambda use_regex: {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    },
    "Digits": lambda each: {"type": "Digits", "individual_digits": each},
    "Split": lambda regex: {
        "type": "Split",
        "pattern": {"Regex": regex},
        "behavior": "Isolated",
        "invert": False,
    },
}
"""Of a tokenizer.json, by what `WAYS_TO_SPLIT` says of them."""
TEXTS = [
    "the quick brown fox",
    "what's 42 or 1234567?  Paris,\n\nthe sea",
    "a story — é, 猫 and I'll",
]
MESSAGES = [{"role": "user", "content": "tell me a story"}]


def make_model(
    name: str, folder: Path, make_tokenizer: Callable[[Path], int] = make_tokenizer
) -> Path:
    """Write a random model of a family whose answers are not all one token."""
    import transformers

    folder.mkdir(parents=True)
    config_name, options = FAMILIES[name]
    words = make_tokenizer(folder)
    config = getattr(transformers, config_name)(vocab_size=words, **SIZES, **options)
    config.initializer_range = 0.2
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def greedy(folder: Path, ids: list[int], count: int = 12) -> list[int]:
    """The tokens that transformers continues with, without the end of the turn."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    made = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=count)
    found: list[int] = made[0, len(ids) :].tolist()
    return found[:-1] if found[-1] == model.generation_config.eos_token_id else found


def continued(prompt: Any, count: int = 12) -> tuple[str, dict[str, Any]]:
    """A request for the same of llama.cpp, after a text or after tokens."""
    body = {"prompt": prompt, "temperature": 0.0, "n_predict": count, "return_tokens": True}
    return "/completion", body


def split(text: str) -> tuple[str, dict[str, Any]]:
    """A request for the tokens of a text."""
    return "/tokenize", {"content": text, "add_special": True, "parse_special": True}


def tokens_of(answer: dict[str, Any]) -> list[int]:
    """The tokens of an answer of llama.cpp, without the end of the turn."""
    found: list[int] = answer["tokens"]
    return found[:-1] if found[-1] == SIZES["eos_token_id"] else found


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_answers_with_the_tokens_of_transformers(family: str, tmp_path: Path) -> None:
    model = make_model(family, tmp_path / "model")
    export(Versions().find(str(model)), tmp_path / "gguf", form="gguf", kind="f32")
    [file] = (tmp_path / "gguf").glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(model)
    chat = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    prompts = [tokenizer(text).input_ids for text in (*TEXTS, chat)]
    expected = [greedy(model, ids) for ids in prompts]
    assert len({tuple(tokens) for tokens in expected}) > 1
    talk = {"messages": MESSAGES, "temperature": 0.0, "max_tokens": 12}
    asked = [*map(continued, prompts), *map(split, (*TEXTS, chat)), ("/v1/chat/completions", talk)]
    *answers, talked = ask_llama_cpp(file, asked)
    assert [tokens_of(answer) for answer in answers[: len(prompts)]] == expected
    assert [answer["tokens"] for answer in answers[len(prompts) :]] == prompts
    assert talked["choices"][0]["message"]["content"] == tokenizer.decode(expected[-1])


@pytest.mark.parametrize("way", WAYS_TO_SPLIT)
def test_text_is_split_before_merging_as_the_tokenizer_does(way: Any, tmp_path: Path) -> None:
    model = make_model("qwen2", tmp_path / "model")
    document = json.loads((model / "tokenizer.json").read_text())
    steps, document["model"]["ignore_merges"] = way
    pretokenizers = [STEPS[kind](setting) for kind, setting in steps]
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": pretokenizers}
    (model / "tokenizer.json").write_text(json.dumps(document))
    write_gguf(model, tmp_path / "m.gguf", kind="f16")
    tokenizer = AutoTokenizer.from_pretrained(model)
    expected = [tokenizer(text).input_ids for text in TEXTS]
    answers = ask_llama_cpp(tmp_path / "m.gguf", [split(text) for text in TEXTS])
    assert [answer["tokens"] for answer in answers] == expected


def test_a_tokenizer_of_sentencepiece_splits_text_alike(tmp_path: Path) -> None:
    model = make_model("mistral", tmp_path / "model", make_sentencepiece)
    write_gguf(model, tmp_path / "m.gguf", kind="f32")
    tokenizer = AutoTokenizer.from_pretrained(model)
    expected = [tokenizer(text).input_ids for text in TEXTS]
    assert {ids[0] for ids in expected} == {tokenizer.bos_token_id}
    asked = [*map(split, TEXTS), continued(expected[0])]
    *answers, answer = ask_llama_cpp(tmp_path / "m.gguf", asked)
    assert [answer["tokens"] for answer in answers] == expected
    assert tokens_of(answer) == greedy(model, expected[0])


def test_an_8_bit_file_answers_too(tmp_path: Path) -> None:
    model = make_model("llama", tmp_path / "model")
    write_gguf(model, tmp_path / "m.gguf", kind="q8_0")
    prompt = AutoTokenizer.from_pretrained(model)(TEXTS[0]).input_ids
    [answer] = ask_llama_cpp(tmp_path / "m.gguf", [continued(prompt, 1)])
    assert tokens_of(answer) == greedy(model, prompt, 1)


def make_sentencepiece(folder: Path) -> int:
    """Write a tokenizer such as Llama 2's and Mistral's; returns the vocabulary's size."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


@pytest.mark.slow
def test_the_default_model_answers_in_llama_cpp(tmp_path: Path) -> None:
    model = resolve("smollm2-135m-instruct", Path("~/.cache/tuneloop").expanduser())
    version = Versions().find("smollm2-135m-instruct")
    export(version, tmp_path / "gguf", form="gguf", kind="f32")
    [file] = (tmp_path / "gguf").glob("*.gguf")
    assert file.name == "smollm2-135m-instruct-F32.gguf"
    tokenizer = AutoTokenizer.from_pretrained(model)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    chat = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    expected = greedy(model, tokenizer(chat, add_special_tokens=False).input_ids, 16)
    talk = {"messages": question, "temperature": 0.0, "max_tokens": 16}
    answer, chatted = ask_llama_cpp(file, [continued(chat, 16), ("/v1/chat/completions", talk)])
    assert tokens_of(answer) == expected
    assert "Paris" in answer["content"]
    assert chatted["choices"][0]["message"]["content"] == tokenizer.decode(expected)
