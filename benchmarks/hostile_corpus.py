"""Requests that mean harm, from `tests/data/hostile`; its README says what the short forms mean."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "tests" / "data" / "hostile"
BASE = {"model": "tuneloop", "max_tokens": 8}
MESSAGES = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostileRequest:
    """One request of the corpus."""

    name: str
    path: str
    body: str
    """JSON."""
    status: int | None
    """What it has to get; None is anything below 500."""


def read_corpus() -> list[HostileRequest]:
    """Return the requests of all files."""
    return [
        request_of(path.stem, entry)
        for path in sorted(FOLDER.glob("*.json"))
        for entry in json.loads(path.read_text())
    ]


def request_of(kind: str, entry: dict[str, Any]) -> HostileRequest:
    """Return a request with its body written out."""
    body = BASE | entry["body"]
    text = "prompt" in body
    if not text:
        body.setdefault("messages", MESSAGES)
    return HostileRequest(
        name=f"{kind}: {entry['name']}",
        path="/v1/completions" if text else "/v1/chat/completions",
        body=written_out(body),
        status=entry.get("status"),
    )


def written_out(value: Any) -> str:
    """Return the JSON of a value with its short forms written out.

    As text, since encoders refuse what is nested as deeply as some of these are.
    """
    match value:
        case {"$text": parts}:
            return json.dumps("".join(text * count for text, count in parts))
        case {"$list": [count, item]}:
            return f"[{','.join([written_out(item)] * count)}]"
        case {"$nest": [count, outer, inner]}:
            before, after = written_out(outer).split('"$inner"')
            return before * count + written_out(inner) + after * count
        case {"$names": [count, name, member]}:
            template = f"{json.dumps(name)}:{written_out(member)}"
            numbered = (
                template.replace("{n}", str(n)).replace("{m}", str(n + 1)) for n in range(count)
            )
            return f"{{{','.join(numbered)}}}"
        case dict():
            return f"{{{','.join(f'{json.dumps(k)}:{written_out(v)}' for k, v in value.items())}}}"
        case list():
            return f"[{','.join(map(written_out, value))}]"
        case _:
            return json.dumps(value)
