"""The figures of `benchmarks.loop`, with intervals over the rounds, and their table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.gateway_table import interval
from benchmarks.intervals import Estimate, median
from benchmarks.loop_stages import BARE, BEFORE, STAGES, WHOLE, WITH_LOGPROBS, Measure

PROCESSES = (
    "worker",
    "scheduler",
    "front end",
    "gateway",
    "nats",
    "reward",
    "learner",
    "load",
)


def stage_rows(measures: Sequence[Measure]) -> list[dict[str, Any]]:
    """A row for each count of streams and stage."""
    rows = []
    for streams in sorted({m.streams for m in measures}):
        by_stage = {
            stage.name: {
                m.round: m for m in measures if (m.streams, m.stage) == (streams, stage.name)
            }
            for stage in STAGES
        }
        for stage in STAGES:
            own = by_stage[stage.name]
            if own:
                rows.append(
                    {
                        "streams": streams,
                        "stage": stage.name,
                        "title": stage.title,
                        "tokens_per_second": median([m.tokens_per_second for m in own.values()]),
                        "ratio_to_vllm": ratio(own, by_stage[BARE]),
                        "ratio_to_vllm_with_logprobs": ratio(own, by_stage[WITH_LOGPROBS]),
                        "ratio_to_before": ratio(own, by_stage[BEFORE]),
                        "cpu_ratio_to_before": ratio(own, by_stage[BEFORE], cpu=True),
                        "cpu_seconds_per_1000_tokens": by_process(list(own.values())),
                        "cores_busy": cores_busy(list(own.values())),
                        "first_token_seconds_p50": float(
                            np.median([m.first_token_seconds_p50 for m in own.values()])
                        ),
                        "tokens_per_request": sum(m.tokens for m in own.values())
                        / sum(m.requests for m in own.values()),
                        "failed": sum(m.failed for m in own.values()),
                    }
                )
    return rows


def ratio(
    own: Mapping[int, Measure], other: Mapping[int, Measure], *, cpu: bool = False
) -> Estimate | None:
    """The median ratio of tokens/s, or of CPU seconds a token, over rounds that have both.

    None where none has.
    """
    pairs = [(own[n], other[n]) for n in sorted(own.keys() & other.keys())]
    if not pairs:
        return None
    if cpu:
        return median([all_cpu_seconds(a) / all_cpu_seconds(b) for a, b in pairs])
    return median([a.tokens_per_second / b.tokens_per_second for a, b in pairs])


def by_process(measures: Sequence[Measure]) -> dict[str, Estimate]:
    """CPU seconds for each 1,000 tokens of every process, and of all."""
    each = [m.cpu_seconds_per_1000_tokens for m in measures]
    found = {name: median([e[name] for e in each]) for name in PROCESSES if name in each[0]}
    return found | {"all": median([all_cpu_seconds(m) for m in measures])}


def all_cpu_seconds(measure: Measure) -> float:
    """CPU seconds for each 1,000 tokens of all processes."""
    return sum(measure.cpu_seconds_per_1000_tokens.values())


def cores_busy(measures: Sequence[Measure]) -> float:
    """How many cores these processes kept busy until the last token."""
    return float(np.median([sum(m.cpu_seconds.values()) / m.seconds for m in measures]))


def throughput_rows(measures: Sequence[Measure]) -> list[dict[str, Any]]:
    """The whole of tuneloop beside vLLM's own server, a row for each count of streams."""
    rows = []
    for streams in sorted({m.streams for m in measures}):
        sides = [
            {m.round: m for m in measures if (m.streams, m.stage) == (streams, name)}
            for name in (WHOLE, BARE)
        ]
        ours, theirs = sides
        rounds = sorted(ours.keys() & theirs.keys())
        if not rounds:
            continue
        ratios = [ours[n].tokens_per_second / theirs[n].tokens_per_second for n in rounds]
        row: dict[str, Any] = {
            "streams": streams,
            "ratio_median": float(np.median(ratios)),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "failed": sum(side[n].failed for side in sides for n in rounds),
        }
        for name, side in (("tuneloop", ours), ("vllm", theirs)):
            for figure in ("tokens_per_second", "first_token_seconds_p50"):
                values = [getattr(side[n], figure) for n in rounds]
                row[f"{name}_{figure}"] = float(np.median(values))
        rows.append(row)
    return rows


def table(result: Mapping[str, Any]) -> str:
    """The stages as Markdown."""
    lines = [
        "# The loop in stages",
        "",
        f"{result['model']}, {result['device']}, {result['measured_time']}. `python -m "
        "benchmarks.loop`: medians over the rounds, in brackets 95 % intervals. The stages take "
        "turns within one run. Stages 2 to 9 answer from the same adapter; 2 and 3 are vLLM's "
        "server with our kernels for LoRA. CPU seconds per 1,000 tokens are by process: worker and "
        "scheduler are vLLM's (on a CPU tuneloop's scheduler computes, too), front end is vLLM's "
        "API server or the generation service, and in stage 4 it holds the load, too. Work that is "
        "left when the last token has come, as "
        "scoring, is counted.",
    ]
    for streams in sorted({row["streams"] for row in result["stages"]}):
        lines += ["", *stage_table(result["stages"], streams)]
        for row in result["stages"]:
            if (row["streams"], row["stage"]) == (streams, WHOLE) and row["ratio_to_before"]:
                lines += [
                    "",
                    f"Beside the commit before: {shown(row['ratio_to_before'])} of its tokens/s, "
                    f"{shown(row['cpu_ratio_to_before'])} of its CPU seconds a token.",
                ]
    seconds = result["feedback_to_serving_seconds"]
    if seconds:
        lines += [
            "",
            "From 16 accepted thumbs to the version that used them serving, without a gate: "
            f"median {np.median(seconds):.1f} s, longest {max(seconds):.1f} s.",
        ]
    return "\n".join(lines) + "\n"


def stage_table(rows: Sequence[Mapping[str, Any]], streams: int) -> Iterator[str]:
    """One count of streams."""
    yield f"{streams} streams:"
    yield ""
    yield (
        "| stage | tokens/s | of 1 | of 3 | "
        + " | ".join(PROCESSES)
        + " | all | cores busy | tokens each | failed |"
    )
    yield "| --- |" + " ---: |" * (len(PROCESSES) + 7)
    numbers = {stage.name: number for number, stage in enumerate(STAGES, start=1)}
    for row in rows:
        if row["streams"] != streams:
            continue
        cpu = row["cpu_seconds_per_1000_tokens"]
        cells = (
            f"{numbers[row['stage']]}. {row['title']}",
            interval(row["tokens_per_second"], 0),
            shown(row["ratio_to_vllm"]),
            shown(row["ratio_to_vllm_with_logprobs"]),
            *(f"{cpu[name]['value']:.2f}" if name in cpu else "" for name in PROCESSES),
            interval(cpu["all"], 2),
            f"{row['cores_busy']:.2f}",
            f"{row['tokens_per_request']:.1f}",
            str(row["failed"]),
        )
        yield "| " + " | ".join(cells) + " |"


def shown(estimate: Estimate | None) -> str:
    return "" if estimate is None else interval(estimate, 3)
