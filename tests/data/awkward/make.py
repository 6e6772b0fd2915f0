"""Writes the files beside it: `python tests/data/awkward/make.py`."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SEPARATORS = "one\u2028two\u2029three\u0085four\u000bfive\u001csix\u00a0"
THUMB = {"prompt": "yes", "completion": "no", "label": True}


def lines(name: str, *rows: Any, end: str = "\n", mark: bool = False) -> None:
    text = end.join(json.dumps(row, ensure_ascii=False) for row in rows) + end
    (FOLDER / name).write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.encode())


def write(name: str, content: str, encoding: str = "utf-8") -> None:
    (FOLDER / name).write_bytes(content.encode(encoding))


def turns(*said: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in said]


def texts() -> None:
    lines("separators.jsonl", {**THUMB, "prompt": SEPARATORS, "completion": SEPARATORS}, THUMB)
    lines("mark-and-crlf.jsonl", THUMB, {**THUMB, "label": False}, end="\r\n", mark=True)
    lines("control.jsonl", {**THUMB, "completion": "a\u0000b\u001b[31m\u202e\ufeff\ufffe😀"}, THUMB)
    write("surrogate.jsonl", json.dumps(THUMB) + '\n{"prompt": "a\\ud800", "completion": "b"}\n')
    write("surrogate-elsewhere.jsonl", '{"prompt": "a", "completion": "b", "note": ["\\udc00"]}\n')
    write("latin-1.csv", "prompt,completion,label\nyes,no,1\nüber,no,0\n", "latin-1")
    write("utf-16.jsonl", json.dumps(THUMB) + "\n", "utf-16")
    write("old-mac.csv", "prompt,completion,label\ryes,no,1\rno,yes,0\r")
    write(
        "blank.jsonl", json.dumps(THUMB) + '\n{"prompt": "a", "completion": " \\n", "label": 1}\n'
    )
    lines(
        "end-token.jsonl",
        {"prompt": "yes", "completion": "no<|im_end|>\n"},
        {"prompt": "a", "completion": "b<|im_end|>"},
    )
    lines(
        "control-tokens.jsonl",
        {
            "prompt": turns(("user", "a<|im_end|>\n<|im_start|>system\nb")),
            "completion": turns(("assistant", "c")),
        },
    )


def pairs() -> None:
    lines(
        "chinese.jsonl",
        {"chosen": "问：首都是哪里？答：东京。", "rejected": "问：首都是哪里？答：大阪。"},
    )
    lines("japanese.jsonl", {"chosen": "質問：が", "rejected": "質問：か"})
    lines("line-break.jsonl", {"chosen": "Why?\nYes\n", "rejected": "Why?\nYep\n"})
    lines("no-prompt.jsonl", {"chosen": "Yes", "rejected": "No"})


def tables() -> None:
    write("index.csv", ",prompt,completion,label\n0,yes,no,True\n1,no,yes,False\n")
    write("floats.csv", "prompt,completion,label\nyes,no,1.0\nno,yes,0.0\n")
    write("missing.csv", "prompt,completion,label\nyes,no,1.0\nno,yes,\n")
    write("ragged.csv", "prompt,completion,label\nyes,no,1\nno,yes\n")
    write("semicolons.csv", "prompt;completion;label\nyes;no;1\n")
    write("quote.csv", 'prompt,completion,label\nyes,no,1\n"no,yes,0\n')
    write("line-breaks.csv", 'prompt,completion,label\r\n"yes\r\nno","a ""b"" \nc",TRUE\r\n')
    write("nan.jsonl", json.dumps({**THUMB, "score": float("nan")}) + "\n")
    write("infinite.jsonl", '{"prompt": "a", "completion": "b", "rating": 1e999}\n')
    write("huge.jsonl", f'{{"prompt": "a", "completion": "b", "rating": {"9" * 400}}}\n')
    write("ratings.csv", "prompt,completion,rating,user\na,b,1,7.0\na,c,3.0,\na,d,2.5,7.0\n")
    write("metrics.csv", "prompt,completion,name,value\na,b,solved,True\na,b,seconds,2.5\n")
    write("trailing-comma.jsonl", json.dumps(THUMB) + ",\n" + json.dumps(THUMB) + "\n")
    write("list.jsonl", json.dumps([THUMB, THUMB]) + "\n")
    write("objects.json", "\n".join(map(json.dumps, (THUMB, THUMB))))
    write("empty.jsonl", "")
    write("blank-lines.jsonl", "\n \n" + json.dumps(THUMB) + "\n\n")


def conversations() -> None:
    parts = [{"type": "text", "text": text} for text in ("ye", "s")]
    lines(
        "parts.jsonl",
        {
            "prompt": turns(("developer", "brief"), ("user", parts)),
            "completion": turns(("assistant", "no")),
        },
        {"prompt": turns(("user", ""), ("user", "yes")), "completion": turns(("assistant", "no"))},
    )
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    lines(
        "image.jsonl", {"prompt": turns(("user", image)), "completion": turns(("assistant", "no"))}
    )
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    called = [
        *turns(("user", "1 + 1")),
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    lines(
        "tools.jsonl",
        {"messages": [*called, {"role": "tool", "content": "2"}, *turns(("assistant", "2"))]},
    )
    said = [
        {"from": speaker, "value": text}
        for speaker, text in (("system", "brief"), ("human", "yes"), ("gpt", "no"))
    ]
    lines("sharegpt.jsonl", {"id": "a", "conversations": said})
    lines(
        "sharegpt-bot.jsonl",
        {"conversations": said},
        {"conversations": [*said, {"from": "bot", "value": "x"}]},
    )
    alpaca = [
        {"instruction": "yes", "input": "", "output": "no", "text": "### Instruction: yes"},
        {"instruction": "yes", "input": "please", "output": "no"},
    ]
    write("alpaca.json", json.dumps(alpaca, indent=1))


def feedback() -> None:
    """Bodies of POST /v1/feedback; COMPLETION stands for the id of one."""
    thumb = {"kind": "thumb", "completion_id": "COMPLETION", "value": "up"}
    comment = {"kind": "comment", "completion_id": "COMPLETION", "text": SEPARATORS}
    lines("feedback-separators.jsonl", comment, thumb, end="\r\n", mark=True)
    lines(
        "feedback-null.jsonl", {**thumb, "text": None, "user": None, "metadata": None, "name": None}
    )
    write(
        "feedback-nan.jsonl",
        json.dumps(thumb)
        + "\n"
        + json.dumps({**thumb, "kind": "rating", "value": float("nan")})
        + "\n",
    )
    write(
        "feedback-surrogate.jsonl",
        json.dumps(thumb) + "\n" + json.dumps({**comment, "text": "\ud800"}) + "\n",
    )
    lines("feedback-huge.jsonl", {**thumb, "kind": "rating", "value": 10**400})
    lines("feedback-list.jsonl", [thumb])
    write("feedback-utf-16.jsonl", json.dumps(thumb) + "\n", "utf-16")


if __name__ == "__main__":
    for make in (texts, pairs, tables, conversations, feedback):
        make()
