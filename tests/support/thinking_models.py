"""Tiny models that think before they answer, with templates and tokens of three families.

They are fitted to a few conversations, so that greedy answers are known.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.tiny_models import CORPUS

Turns = tuple[dict[str, Any], ...]

QWEN_TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}"
    "{%- set last = namespace(question=-1) %}"
    "{%- for m in messages %}{% if m.role == 'user' %}{% set last.question = loop.index0 %}"
    "{% endif %}{% endfor %}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n"
    "{%- if message.reasoning_content and loop.index0 > last.question %}"
    "<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{- message.content }}"
    "{%- for call in message.tool_calls or [] %}<tool_call>\n"
    "{{- {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}"
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{%- if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{%- endif %}"
)
"""Thoughts stay until the next question; the model writes both tags itself."""

LLAMA_TEMPLATE = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{- message.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""The prompt begins the thought, as with models distilled from R1; earlier thoughts are dropped."""

HARMONY_TEMPLATE = (
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' }}<|end|>"
    "{%- if tools %}<|start|>developer<|message|>"
    "{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|end|>{% endif %}"
    "{%- for message in messages %}{% if message.role == 'assistant' %}"
    "{%- if message.tool_calls %}{% if message.thinking %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ message.thinking }}<|end|>{% endif %}"
    "{%- for call in message.tool_calls %}<|start|>assistant to=functions.{{ call.function.name }}"
    "<|channel|>commentary json<|message|>{{ call.function.arguments | tojson }}<|call|>"
    "{%- endfor %}{% else %}"
    "<|start|>assistant<|channel|>final<|message|>{{ message.content }}<|end|>{% endif %}"
    "{%- elif message.role == 'tool' %}"
    "<|start|>functions to=assistant<|channel|>commentary<|message|>{{ message.content }}<|end|>"
    "{%- else %}<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>{% endif %}"
    "{%- endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
HARMONY_TOKENS = (
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|channel|>",
    "<|constrain|>",
    "<|return|>",
    "<|call|>",
)
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "pad_token_id": 3,
    "bos_token_id": 1,
}
SHAPES = ("qwen3", "gpt-oss", "llama")

QUESTION, THOUGHT, ANSWER = "what is the capital?", "the capital of France", "Paris."
NEXT_QUESTION, NEXT_THOUGHT, NEXT_ANSWER = "and the sea?", "a river, a mountain", "hello sea"
FOLLOW_UPS: Mapping[str, tuple[str, str]] = {
    QUESTION: (THOUGHT, ANSWER),
    NEXT_QUESTION: (NEXT_THOUGHT, NEXT_ANSWER),
}


def make_thinker(folder: Path, shape: str) -> Path:
    """Write a model of a shape that thinks `THOUGHT`, answers `ANSWER`, and so in a next turn."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_thinking_tokenizer(folder, shape)
    ends = [tokenizer.eos_token_id]
    if shape == "gpt-oss":
        ends.append(tokenizer.convert_tokens_to_ids("<|call|>"))
    name, options = {
        "qwen3": ("Qwen3Config", {}),
        "gpt-oss": ("GptOssConfig", {"num_local_experts": 4, "sliding_window": 64}),
        "llama": ("LlamaConfig", {}),
    }[shape]
    config = getattr(transformers, name)(
        vocab_size=len(tokenizer), eos_token_id=ends, **SIZES, **options
    )
    fit(config, tokenizer, shape, folder)
    transformers.GenerationConfig(eos_token_id=ends).save_pretrained(folder)
    return folder


def make_thinking_tokenizer(folder: Path, shape: str) -> Any:
    """Write a byte-level tokenizer with the tokens and the template of a shape."""
    from tokenizers import AddedToken, ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    harmony = HARMONY_TOKENS if shape == "gpt-oss" else ()
    bpe.train_from_iterator(
        CORPUS * 4, vocab_size=400, min_frequency=1, special_tokens=[*special, *harmony]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|return|>" if harmony else "<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|pad|>",
        model_max_length=1024,
    )
    if not harmony:
        tags = ("<think>", "</think>", "<tool_call>", "</tool_call>")
        tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    tokenizer.chat_template = {
        "qwen3": QWEN_TEMPLATE,
        "llama": LLAMA_TEMPLATE,
        "gpt-oss": HARMONY_TEMPLATE,
    }[shape]
    tokenizer.save_pretrained(folder)
    return tokenizer


def completion_of(shape: str, thought: str, answer: str) -> str:
    """Return what a model of a shape samples for a thought and an answer."""
    if shape == "gpt-oss":
        return (
            f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant"
            f"<|channel|>final<|message|>{answer}<|return|>"
        )
    begin = "" if shape == "llama" else "<think>\n"
    return f"{begin}{thought}\n</think>\n\n{answer}<|im_end|>"


def lessons(tokenizer: Any, shape: str) -> list[tuple[list[int], list[int]]]:
    """Return prompts and completions of the first question, and of the one that follows it."""
    asked: Turns = ({"role": "user", "content": QUESTION},)
    said = {"role": "assistant", "content": ANSWER}
    found = []
    conversations: list[tuple[Turns, dict[str, Any]]] = [
        (asked, {}),
        ((*asked, said, {"role": "user", "content": NEXT_QUESTION}), {}),
    ]
    for turns, options in conversations:
        prompt = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **options
        )
        completion = completion_of(shape, *FOLLOW_UPS[turns[-1]["content"]])
        ids = (tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, completion))
        found.append(tuple(ids))
    return found


def fit(config: Any, tokenizer: Any, shape: str, folder: Path) -> None:
    """Train a random model until it answers the lessons by heart, and save it."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    taught = lessons(tokenizer, shape)
    for _ in range(400):
        losses = []
        for prompt, completion in taught:
            ids = torch.tensor([[*prompt, *completion]])
            labels = ids.clone()
            labels[:, : len(prompt)] = -100
            losses.append(model(input_ids=ids, labels=labels).loss)
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if max(each.item() for each in losses) < 0.01:
            break
    else:
        raise AssertionError(f"the {shape} model has not learned: {loss.item():.3f}")
    model.save_pretrained(folder)
