"""The run book answers every alert, and its links lead somewhere."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
BOOK = (ROOT / "docs" / "operations.md").read_text()
ALERTS = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())


def anchors() -> set[str]:
    """Of every heading, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", BOOK, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings}


def test_every_alert_has_a_section_that_its_annotation_names() -> None:
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    assert rules
    for rule in rules:
        anchor = rule["alert"].lower()
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{anchor}"
        assert anchor in anchors(), f"docs/operations.md has no section {rule['alert']}"


def test_links_of_the_run_book_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", BOOK):
        path, _, anchor = target.partition("#")
        if path.startswith("https://"):
            continue
        if path:
            assert (ROOT / "docs" / path).is_file(), target
        else:
            assert anchor in anchors(), target
