"""Small data sets for training offline, the same every time."""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dog",
    "river",
    "mountain",
    "sea",
    "yes",
    "no",
    "please",
]


def text(source: random.Random, words: int) -> str:
    return " ".join(source.choices(WORDS, k=words))


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def assistant(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_for(algorithm: str, count: int = 12) -> list[dict[str, Any]]:
    source = random.Random(algorithm)
    made: list[dict[str, Any]] = []
    for i in range(count):
        question, answer = user(text(source, 3)), assistant(text(source, 2 + i % 3))
        match algorithm:
            case "sft":
                made.append({"messages": question + answer})
            case "kto":
                made.append({"prompt": question, "completion": answer, "label": i % 3 == 0})
            case "sdft":
                comment = text(source, 2)
                made.append({"prompt": question, "completion": answer, "comment": comment})
            case "dpo" | "reward-model":
                worse = assistant(text(source, 6))
                made.append({"prompt": question, "chosen": answer, "rejected": worse})
            case _:
                made.append({"prompt": question, "wanted": i})
    return made


def shorter(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """A reward function: short answers are good."""
    assert all(len(column) == len(completions) for column in columns.values())
    return [-len(completion) / 10 for completion in completions]
