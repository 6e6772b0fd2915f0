"""What PromQL expressions name: metrics, labels they select by, labels they group by."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser

from docs import render_metrics

SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds itself."""
SUFFIXES = ("_bucket", "_sum", "_count")


@dataclass(frozen=True)
class Selector:
    metric: str
    labels: frozenset[str]


def known_labels() -> dict[str, set[str]]:
    """Labels of every series a process exposes, by its name."""
    known = {"up": set(SCRAPED)}
    for process in render_metrics.ENTRY_POINTS:
        for metric in render_metrics.metrics_of(process):
            name, labels = render_metrics.exposed_name(metric), set(metric._labelnames) | SCRAPED
            if metric._type == "histogram":
                known |= {f"{name}{suffix}": labels for suffix in SUFFIXES}
                known[f"{name}_bucket"] = labels | {"le"}
            else:
                known[name] = labels
    return known


def parsed(expression: str) -> Any:
    """The expression's tree; Grafana's own variables stand for a range."""
    return promql_parser.parse(re.sub(r"\$__\w+", "5m", expression))


def nodes(tree: Any) -> Iterator[Any]:
    """Every node of a tree."""
    yield tree
    for name in ("lhs", "rhs", "expr", "vector_selector", "param"):
        child = getattr(tree, name, None)
        if child is not None and not isinstance(child, str):
            yield from nodes(child)
    for child in getattr(tree, "args", None) or ():
        yield from nodes(child)


def selectors(tree: Any) -> list[Selector]:
    """What it reads."""
    found = [node for node in nodes(tree) if isinstance(node, promql_parser.VectorSelector)]
    return [
        Selector(node.name, frozenset(m.name for m in node.matchers.matchers)) for node in found
    ]


def problems(expression: str, known: dict[str, set[str]]) -> list[str]:
    """Metrics and labels of an expression that no process has."""
    tree = parsed(expression)
    found = []
    for selector in selectors(tree):
        if selector.metric not in known:
            found.append(f"no metric {selector.metric}")
            continue
        missing = selector.labels - known[selector.metric]
        found += [f"{selector.metric} has no label {label}" for label in sorted(missing)]
    for node in nodes(tree):
        modifier = getattr(node, "modifier", None)
        if isinstance(node, promql_parser.AggregateExpr) and modifier is not None:
            names = {s.metric for s in selectors(node.expr)}
            there = set().union(*(known.get(name, set()) for name in names))
            found += [
                f"{names} have no label {label}" for label in modifier.labels if label not in there
            ]
    return found


def outcome_labels(expression: str, known: dict[str, set[str]]) -> set[str]:
    """Labels that its result may have."""
    return labels_of(parsed(expression), known)


def labels_of(tree: Any, known: dict[str, set[str]]) -> set[str]:
    match tree:
        case promql_parser.VectorSelector():
            return set(known[tree.name])
        case promql_parser.MatrixSelector():
            return set(known[tree.vector_selector.name])
        case promql_parser.AggregateExpr():
            return set() if tree.modifier is None else set(tree.modifier.labels)
        case promql_parser.BinaryExpr():
            return labels_of(tree.lhs, known) | labels_of(tree.rhs, known)
        case promql_parser.Call():
            labels = set().union(*(labels_of(argument, known) for argument in tree.args))
            return labels - {"le"} if tree.func.name == "histogram_quantile" else labels
        case promql_parser.ParenExpr() | promql_parser.SubqueryExpr() | promql_parser.UnaryExpr():
            return labels_of(tree.expr, known)
        case _:
            return set()
