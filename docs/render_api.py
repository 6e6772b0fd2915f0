"""Render the tables of docs/api.md from the tests: `python -m docs.render_api`.

Each row of a table of fields is a case of `tests/integration/test_request_fields.py`, which sends
the field to the gateway and looks at what comes of it; each `yes` of the table of clients is a
test. A test renders the page again and compares.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support import anthropic_fields, openai_fields, responses_fields
from tests.support.clients_tools import CLIENTS
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


def table_of_clients() -> str:
    """Which clients have a test on which API."""
    apis = ("chat", "responses", "messages")
    rows = [f"| client | {' | '.join(apis)} |", "| --- " * (len(apis) + 1) + "|"]
    for name, tests in CLIENTS.items():
        rows.append(f"| {name} | {' | '.join('yes' if api in tests else '' for api in apis)} |")
    return "\n".join(rows)


def render(page: str) -> str:
    """The page with its tables made anew."""
    page = replace(page, "<!-- clients -->\n", "<!-- end of clients -->", table_of_clients())
    for name, (fields, columns) in SECTIONS.items():
        begin, end = f"<!-- fields: {name} -->\n", "<!-- end of fields -->"
        page = replace(page, begin, end, table(fields, columns))
    return page


def replace(page: str, begin: str, end: str, between: str) -> str:
    """The page with a table between two comments made anew."""
    head, found, rest = page.partition(begin)
    if not found:
        raise ValueError(f"{PAGE.name} has no {begin.strip()}")
    return head + begin + between + "\n" + end + rest.partition(end)[2]


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
