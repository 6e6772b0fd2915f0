"""Render the tables of docs/api.md from the tests: `python -m docs.render_api`.

Each row is a case of `tests/integration/test_openai_fields.py`, which sends the field to the
gateway and looks at what comes of it. A test renders the page again and compares.
"""

from collections.abc import Sequence
from pathlib import Path

from tests.support.openai_fields import CHAT, FIELDS, OURS, TEXT, OpenAIField

PAGE = Path(__file__).with_name("api.md")
WORDS = {"yes": "yes", "ignored": "ignored", "refused": "refused by name"}
SECTIONS: dict[str, Sequence[OpenAIField]] = {"OpenAI's": FIELDS, "ours": OURS}


def table(fields: Sequence[OpenAIField]) -> str:
    """One table, supported fields first."""
    rows = ["| field | chat | text | |", "| --- | --- | --- | --- |"]
    names = dict.fromkeys(
        f.name for f in sorted(fields, key=lambda f: list(WORDS).index(f.support))
    )
    for name in names:
        by_endpoint = {end: f for f in fields if f.name == name for end in f.endpoints}
        words = [
            WORDS[by_endpoint[end].support] if end in by_endpoint else "" for end in (CHAT, TEXT)
        ]
        notes = dict.fromkeys(f.note for f in by_endpoint.values() if f.note)
        rows.append(f"| `{name}` | {words[0]} | {words[1]} | {'; '.join(notes)} |")
    return "\n".join(rows)


def render(page: str) -> str:
    """The page with its tables made anew."""
    for name, fields in SECTIONS.items():
        begin, end = f"<!-- fields: {name} -->\n", "<!-- end of fields -->"
        head, found, rest = page.partition(begin)
        if not found:
            raise ValueError(f"{PAGE.name} has no place for {name} fields")
        page = head + begin + table(fields) + "\n" + end + rest.partition(end)[2]
    return page


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
