"""Render the tables of docs/api.md from the tests: `python -m docs.render_api`.

Each row is a case of `tests/integration/test_request_fields.py`, which sends the field to the
gateway and looks at what comes of it. A test renders the page again and compares.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support import anthropic_fields, openai_fields, responses_fields
from tests.support.request_fields import RequestField

PAGE = Path(__file__).with_name("api.md")
WORDS = {"yes": "yes", "ignored": "ignored", "refused": "refused by name"}
OPENAI = {"chat": openai_fields.CHAT, "text": openai_fields.TEXT}
ANTHROPIC = {"messages": anthropic_fields.MESSAGES}
RESPONSES = {"responses": responses_fields.RESPONSES}
SECTIONS: Mapping[str, tuple[Sequence[RequestField], Mapping[str, str]]] = {
    "OpenAI's": (openai_fields.FIELDS, OPENAI),
    "ours": (openai_fields.OURS, OPENAI),
    "OpenAI's of a response": (responses_fields.FIELDS, RESPONSES),
    "ours of a response": (responses_fields.OURS, RESPONSES),
    "Anthropic's": (anthropic_fields.FIELDS, ANTHROPIC),
    "ours beside Anthropic's": (anthropic_fields.OURS, ANTHROPIC),
}
"""Fields by the section they are shown in, with the endpoint of each column."""


def table(fields: Sequence[RequestField], columns: Mapping[str, str]) -> str:
    """One table, supported fields first."""
    rows = [f"| field | {' | '.join(columns)} | |", "| --- " * (len(columns) + 2) + "|"]
    names = dict.fromkeys(
        f.name for f in sorted(fields, key=lambda f: list(WORDS).index(f.support))
    )
    for name in names:
        by_endpoint = {end: f for f in fields if f.name == name for end in f.endpoints}
        words = [
            WORDS[by_endpoint[end].support] if end in by_endpoint else ""
            for end in columns.values()
        ]
        notes = dict.fromkeys(f.note for f in by_endpoint.values() if f.note)
        rows.append(f"| `{name}` | {' | '.join(words)} | {'; '.join(notes)} |")
    return "\n".join(rows)


def render(page: str) -> str:
    """The page with its tables made anew."""
    for name, (fields, columns) in SECTIONS.items():
        begin, end = f"<!-- fields: {name} -->\n", "<!-- end of fields -->"
        head, found, rest = page.partition(begin)
        if not found:
            raise ValueError(f"{PAGE.name} has no place for {name} fields")
        page = head + begin + table(fields, columns) + "\n" + end + rest.partition(end)[2]
    return page


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
