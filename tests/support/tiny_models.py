"""Tiny random models with real tokenizers, made in seconds and the same every time."""

from pathlib import Path

from tuneloop.gpus.shapes import ModelShape

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOL_CHAT_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] }}{% for call in message.tool_calls or [] %}"
    "<tool_call>{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}"
    "</tool_call>{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Also shows the model the functions it may call, and the calls it made."""
CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "what is the capital of France? The capital of France is Paris.",
    "tell me a short story about a river, a mountain and the sea",
    "system user assistant you are a helpful assistant",
    "yes no please thanks hello world 0 1 2 3 4 5 6 7 8 9",
]


SMALL_SHAPE = ModelShape(
    layers=2,
    hidden=8,
    heads=4,
    key_value_heads=2,
    head_size=3,
    intermediate=10,
    vocabulary=100,
    tied=False,
)
"""So small that its bytes can be counted by hand."""


def make_tokenizer(folder: Path) -> int:
    """Write a byte-level BPE tokenizer with chat template; returns the vocabulary's size."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    bpe.train_from_iterator(CORPUS * 4, vocab_size=384, min_frequency=1, special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|pad|>",
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def make_policy(folder: Path, seed: int = 0) -> Path:
    """Write a random 2-layer Llama (hidden 64, head size 32: what vLLM's CPU attention takes)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = make_tokenizer(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        tie_word_embeddings=True,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_obliging_policy(folder: Path) -> Path:
    """Write a tiny policy that ends strings, objects and turns soon, and takes functions.

    Its embeddings share one large feature, which the output layer reads as a bias on each token.
    """
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    make_policy(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TOOL_CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        output = model.lm_head.weight.clone()
        model.model.embed_tokens.weight[:, 0] = 1.0
        # The feature reaches the output layer as sqrt(64) = 8, and the temperature is a half.
        for text, logit in {'"': 4.0, "}": 4.0, "<|im_end|>": 2.0, "Ġ": -8.0, "Ċ": -8.0}.items():
            output[tokenizer.convert_tokens_to_ids(text), 0] = logit / 8
        model.config.tie_word_embeddings = False
        # Functions are spelled nearly letter by letter.
        model.config.max_position_embeddings = 2048
        model.lm_head.weight = torch.nn.Parameter(output)
    model.save_pretrained(folder)
    return folder


def make_reward_model(folder: Path, seed: int = 0) -> Path:
    """Write a random 2-layer BERT backbone with its tokenizer (no score head)."""
    import torch
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = make_tokenizer(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        pad_token_id=3,
    )
    BertModel(config).save_pretrained(folder)
    return folder
