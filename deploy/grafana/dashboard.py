"""Grafana's dashboard as code: `python -m deploy.grafana.dashboard` writes tuneloop.json.

Rows of panels, panels of queries; everything else is the same for all of them. A test renders it
again and looks every metric and label up in those that exist.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("tuneloop.json")
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT, COLUMNS = 6, 7, 24
RATE = "$__rate_interval"


@dataclass(frozen=True, slots=True)
class Query:
    """One or several lines."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """A chart."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    meaning: str = ""


def panel(title: str, unit: str, *queries: tuple[str, str] | str, meaning: str = "") -> Panel:
    """A panel; a query is an expression, or one with its legend."""
    made = tuple(Query(q) if isinstance(q, str) else Query(*q) for q in queries)
    return Panel(title, unit, made, meaning)


def quantiles(metric: str, by: str = "") -> tuple[tuple[str, str], ...]:
    """p50, p95 and p99 of a histogram."""
    labels = f"le, {by}" if by else "le"
    name = f" {{{{{by}}}}}" if by else ""
    return tuple(
        (
            f"histogram_quantile({q / 100}, sum by ({labels}) (rate({metric}_bucket[{RATE}])))",
            f"p{q}{name}",
        )
        for q in (50, 95, 99)
    )


REQUESTS = 'tuneloop_gateway_http_requests_total{route=~"/v1/.+"}'
FAILED = 'tuneloop_gateway_http_requests_total{route=~"/v1/.+",status=~"5.."}'

ROWS: dict[str, Sequence[Panel]] = {
    "Serving": (
        panel("Processes up", "short", ('sum by (job) (up{job=~"tuneloop-.+"})', "{{job}}")),
        panel("Requests", "reqps", (f"sum by (route) (rate({REQUESTS}[{RATE}]))", "{{route}}")),
        panel(
            "Failed",
            "percentunit",
            f"sum(rate({FAILED}[{RATE}])) / sum(rate({REQUESTS}[{RATE}]))",
            meaning="Share of the requests to /v1 that ended in 5xx.",
        ),
        panel("In flight", "short", "sum(tuneloop_gateway_http_requests_in_flight)"),
        panel(
            "Time to first token", "s", *quantiles("tuneloop_gateway_time_to_first_token_seconds")
        ),
        panel("Between tokens", "s", *quantiles("tuneloop_inter_token_latency_seconds")),
        panel(
            "Tokens",
            "short",
            (f"sum(rate(tuneloop_completion_tokens_total[{RATE}]))", "sampled a second"),
            (f"sum(rate(tuneloop_prompt_tokens_total[{RATE}]))", "of prompts a second"),
        ),
        panel(
            "Running in generation",
            "short",
            ("sum by (instance) (tuneloop_running_requests)", "{{instance}}"),
        ),
        panel(
            "Cost",
            "short",
            ("sum by (key) (increase(tuneloop_gateway_cost_total[1h]))", "{{key}} in an hour"),
            meaning="By the prices of TUNELOOP_GATEWAY_PRICES, in their currency.",
        ),
    ),
    "Feedback and pipeline": (
        panel(
            "Feedback stored",
            "short",
            (
                f"sum by (kind) (rate(tuneloop_gateway_feedback_accepted_total[{RATE}])) * 60",
                "{{kind}} a minute",
            ),
        ),
        panel(
            "Feedback refused",
            "short",
            (
                f"sum by (reason) (rate(tuneloop_gateway_feedback_refused_total[{RATE}])) * 60",
                "{{reason}} a minute",
            ),
        ),
        panel(
            "Feedback stream in use",
            "percentunit",
            "max(tuneloop_gateway_feedback_stream_ratio)",
            meaning="Full, it refuses everybody's feedback; above 70 % the largest talkers'.",
        ),
        panel(
            "Behind the streams",
            "short",
            ("max by (consumer) (tuneloop_learner_consumer_lag)", "{{consumer}}"),
            ("max(tuneloop_reward_consumer_lag_rollouts)", "to score"),
        ),
        panel(
            "Age of new feedback",
            "s",
            "max(tuneloop_learner_ledger_lag_seconds)",
            meaning="When the ledger recorded it.",
        ),
        panel(
            "Dead letters",
            "short",
            (
                "sum by (consumer) (increase(tuneloop_dead_letters_total[1h]))",
                "{{consumer}} in an hour",
            ),
        ),
        panel(
            "Rollouts",
            "short",
            (f"sum(rate(tuneloop_rollouts_published_total[{RATE}]))", "stored a second"),
            (
                f"sum(rate(tuneloop_learner_rollouts_consumed_total[{RATE}]))",
                "in the ledger a second",
            ),
            (
                f"sum by (reason) (rate(tuneloop_rollouts_dropped_total[{RATE}]))",
                "dropped a second: {{reason}}",
            ),
        ),
        panel("Connected to NATS", "short", ("min by (job) (tuneloop_bus_connected)", "{{job}}")),
        panel(
            "Disk free",
            "percentunit",
            ("tuneloop_disk_free_bytes / tuneloop_disk_size_bytes", "{{job}} {{folder}}"),
        ),
    ),
    "Learning": (
        panel(
            "Next batch",
            "percentunit",
            ("max by (objective) (tuneloop_learner_batch_fill_ratio)", "{{objective}}"),
            meaning="From 100 % on a step is due.",
        ),
        panel(
            "Samples",
            "short",
            (
                'sum by (objective, state) (tuneloop_learner_samples{state!="used"})',
                "{{objective}} {{state}}",
            ),
        ),
        panel(
            "Steps",
            "short",
            (
                "sum by (model) (increase(tuneloop_learner_steps_total[10m]))",
                "{{model}} in 10 minutes",
            ),
            (
                "sum by (model, reason) (increase(tuneloop_learner_steps_skipped_total[10m]))",
                "{{model}} skipped: {{reason}}",
            ),
            (
                "sum by (model) (increase(tuneloop_learner_steps_failed_total[10m]))",
                "{{model}} failed",
            ),
        ),
        panel("A step takes", "s", *quantiles("tuneloop_learner_step_seconds", "model")),
        panel("Loss", "short", ("max by (model) (tuneloop_learner_loss)", "{{model}}")),
        panel(
            "KL to the reference policy",
            "short",
            ("max(tuneloop_learner_kl)", "last step"),
            ("max(tuneloop_learner_eval_kl)", "eval prompts"),
        ),
        panel(
            "Log-probs of generation and learner differ by",
            "short",
            "max(tuneloop_learner_logprob_gap)",
            meaning="Nats per token, by the same weights: more than precision is a wrong base.",
        ),
        panel(
            "Reward",
            "short",
            ("max(tuneloop_learner_eval_reward)", "eval prompts"),
            ("max(tuneloop_learner_reward)", "last batch"),
            (
                f"sum(rate(tuneloop_reward_value_sum[{RATE}]))"
                f" / sum(rate(tuneloop_reward_value_count[{RATE}]))",
                "of what is served",
            ),
        ),
        panel(
            "Length",
            "short",
            ("max by (part) (tuneloop_learner_answer_length_tokens)", "{{part}}"),
            ("max(tuneloop_learner_eval_length_tokens)", "answer, eval prompts"),
            ("max(tuneloop_learner_eval_thought_length_tokens)", "thought, eval prompts"),
            meaning="Mean tokens of the newest versions' answers, and of the thoughts before them.",
        ),
        panel(
            "Repetition",
            "percentunit",
            ("max by (part) (tuneloop_learner_answer_repetition_ratio)", "{{part}}"),
            meaning="Share of 4-grams that occurred before in the same answer, or thought.",
        ),
        panel(
            "Not scored",
            "short",
            (
                f"sum by (scorer, reason) (rate(tuneloop_reward_unscored_total[{RATE}]))",
                "{{scorer}} {{reason}} a second",
            ),
        ),
    ),
    "Guards": (
        panel("Alarms", "short", ("max by (name) (tuneloop_guard_alarm)", "{{name}}")),
        panel("Raters muted", "short", "max(tuneloop_guard_raters_muted)"),
        panel(
            "Samples that count less",
            "short",
            (
                f"sum by (objective) (rate(tuneloop_guard_samples_limited_total[{RATE}])) * 60",
                "{{objective}} a minute",
            ),
        ),
        panel("Set aside", "short", "sum(increase(tuneloop_learner_samples_set_aside_total[1h]))"),
    ),
    "Release": (
        panel(
            "Versions",
            "short",
            ('max(tuneloop_learner_policy_version{model="policy"})', "published"),
            ("max(tuneloop_policy_version)", "serving"),
            ("max(tuneloop_learner_eval_version)", "evaluated"),
            ("max(tuneloop_reward_model_version)", "reward model"),
        ),
        panel(
            "Decisions",
            "short",
            (
                "sum by (kind, outcome) (increase(tuneloop_release_decisions_total[1h]))",
                "{{kind}}: {{outcome}}",
            ),
            ("sum(increase(tuneloop_versions_quarantined_total[1h]))", "quarantined"),
            meaning="In an hour.",
        ),
        panel(
            "Canary",
            "short",
            ("max(tuneloop_canary_version)", "version"),
            (f"sum by (arm) (rate(tuneloop_canary_requests_total[{RATE}]))", "{{arm}} a second"),
        ),
        panel(
            "Canary minus stable",
            "short",
            ("max by (figure, bound) (tuneloop_canary_difference)", "{{figure}} {{bound}}"),
            meaning="Bounds that hold whenever one looks.",
        ),
        panel(
            "From feedback to serving",
            "s",
            *quantiles("tuneloop_learner_feedback_to_serving_seconds"),
        ),
        panel("A swap takes", "s", *quantiles("tuneloop_swap_seconds")),
        panel("A swap pauses", "s", *quantiles("tuneloop_swap_pause_seconds")),
        panel(
            "First token after a pause",
            "s",
            *quantiles("tuneloop_swap_resume_seconds"),
        ),
        panel(
            "Versions refused",
            "short",
            ("sum by (by) (increase(tuneloop_swaps_refused_total[1h]))", "generation: {{by}}"),
            (
                "sum by (reason) (increase(tuneloop_reward_swaps_refused_total[1h]))",
                "reward: {{reason}}",
            ),
        ),
        panel(
            "Versions in memory",
            "short",
            ("sum by (instance) (tuneloop_loaded_versions)", "{{instance}}"),
        ),
    ),
}


def render_panel(made: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    """Grafana's form of a panel."""
    return {
        "id": number,
        "type": "timeseries",
        "title": made.title,
        "description": made.meaning,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": made.unit}},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": DATASOURCE,
                "expr": query.expression,
                "legendFormat": query.legend or made.title,
            }
            for place, query in enumerate(made.queries)
        ],
    }


def render() -> str:
    """The dashboard as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        number = len(panels) + 1
        panels.append({"id": number, "type": "row", "title": title, "gridPos": place, "panels": []})
        for index, made in enumerate(row):
            column, line = index * WIDTH % COLUMNS, index * WIDTH // COLUMNS
            number = len(panels) + 1
            panels.append(render_panel(made, number, column, y + 1 + line * HEIGHT))
        y += 1 + -(-len(row) * WIDTH // COLUMNS) * HEIGHT
    dashboard = {
        "uid": "tuneloop",
        "title": "tuneloop",
        "tags": ["tuneloop"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": []},
        "annotations": {
            "list": [
                {
                    "name": "New version",
                    "enable": True,
                    "datasource": DATASOURCE,
                    "expr": "changes(max(tuneloop_policy_version)[1m:15s]) > 0",
                    "titleFormat": "another version serves",
                    "iconColor": "green",
                }
            ]
        },
        "panels": panels,
    }
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(render())
