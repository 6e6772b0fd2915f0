"""Dashboard and alerts ask for metrics and labels that exist. Nothing here needs promtool."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.promql import known_labels, outcome_labels, parsed, problems

from deploy.grafana import dashboard
from docs.render_metrics import ENTRY_POINTS

ROOT = Path(__file__).resolve().parents[3]
PROMETHEUS = ROOT / "deploy" / "prometheus"
IN_TEMPLATE = re.compile(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}")


@cache
def known() -> dict[str, set[str]]:
    return known_labels()


def document(name: str) -> Any:
    return yaml.safe_load((PROMETHEUS / name).read_text())


def rules() -> list[dict[str, Any]]:
    return [rule for group in document("alerts.yaml")["groups"] for rule in group["rules"]]


def queries() -> list[tuple[str, str]]:
    found = json.loads(dashboard.FILE.read_text())
    charted = [
        (target["expr"], target["legendFormat"])
        for panel in found["panels"]
        for target in panel.get("targets", [])
    ]
    return charted + [(note["expr"], note["titleFormat"]) for note in found["annotations"]["list"]]


def test_a_wrong_query_is_noticed() -> None:
    assert problems("sum(rate(tuneloop_no_such_total[5m]))", known())
    assert problems('tuneloop_bus_connected{color="red"}', known())
    assert problems("sum by (color) (rate(tuneloop_rollouts_dropped_total[5m]))", known())
    assert not problems("sum by (reason) (rate(tuneloop_rollouts_dropped_total[5m]))", known())
    with pytest.raises(ValueError, match=r"."):
        parsed("sum(rate(")


def test_the_dashboard_is_current() -> None:
    assert dashboard.FILE.read_text() == dashboard.render(), (
        "deploy/grafana/tuneloop.json is out of date: python -m deploy.grafana.dashboard"
    )


def test_the_dashboard_asks_for_what_exists() -> None:
    for expression, legend in queries():
        assert problems(expression, known()) == [], expression
        assert set(IN_TEMPLATE.findall(legend)) <= outcome_labels(expression, known()), legend


def test_panels_have_places_and_names_of_their_own() -> None:
    panels = json.loads(dashboard.FILE.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_alerts_ask_for_what_exists() -> None:
    for rule in rules():
        assert problems(rule["expr"], known()) == [], rule["alert"]
        named = set(IN_TEMPLATE.findall(rule["annotations"]["summary"]))
        assert named <= outcome_labels(rule["expr"], known()), rule["alert"]


def test_alerts_say_how_bad_it_is_and_where_to_read_on() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["alert"].startswith("Tuneloop")
        assert rule["labels"]["severity"] in ("critical", "warning")
        anchor = f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["annotations"]["runbook"] == anchor


def test_the_run_book_has_a_section_for_each_alert() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    sections = set(re.findall(r"^#+ (\w+)$", page, re.MULTILINE))
    assert {rule["alert"] for rule in rules()} <= sections


def test_every_alert_is_tested() -> None:
    """By `promtool test rules`, which runs where there is a promtool."""
    fires, quiet = set(), set()
    for test in document("alerts_test.yaml")["tests"]:
        for case in test["alert_rule_test"]:
            (fires if case["exp_alerts"] else quiet).add(case["alertname"])
        for series in test["input_series"]:
            assert problems(series["series"], known()) == [], series
    assert fires == {rule["alert"] for rule in rules()}
    assert quiet == fires


def test_prometheus_scrapes_every_process() -> None:
    config = document("prometheus.yaml")
    assert config["rule_files"] == ["alerts.yaml"]
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    assert {f"tuneloop-{process}" for process in ENTRY_POINTS} <= jobs
