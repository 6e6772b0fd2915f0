"""The results of `benchmarks.hot_swap` as Markdown, with what others have published."""

from collections.abc import Iterator
from typing import Any

from benchmarks.gateway_table import interval

PUBLISHED = (
    (
        "checkpoint-engine (Moonshot AI)",
        "GLM-4.5-Air, BF16, all weights; 8 × H800, vLLM",
        "3.5 s an update by broadcast, 4.1 s by P2P",
        "[its README](https://github.com/MoonshotAI/checkpoint-engine#benchmark)",
    ),
    (
        "checkpoint-engine (Moonshot AI)",
        "Kimi-K2 (1 T parameters), FP8, all weights; 256 × H20, vLLM",
        "16.0 s an update by broadcast, 16.8 s by P2P",
        "[its README](https://github.com/MoonshotAI/checkpoint-engine#benchmark)",
    ),
    (
        "Perplexity",
        "Kimi-K2, all weights; 256 GPUs that train to 128 that serve, RDMA",
        "1.3 s a transfer",
        '"Weight Transfer for RL Post-Training in under 2 seconds" (their research blog)',
    ),
    (
        "slime with SGLang",
        "Qwen3-30B-A3B, all weights, trainer and engine on the same GPUs",
        "60 s before, 7 s after their work on it",
        "[its authors' account](https://hebiao064.github.io/rl-weight-sync)",
    ),
    (
        "AReaL with SGLang",
        "Qwen3-30B-A3B, all weights, read from disk",
        "about 60 s before, about 30 s after a patch",
        "[its pull request 324](https://github.com/inclusionAI/AReaL/pull/324)",
    ),
)
"""System, what was updated where, the figure, and who says so."""


def table(result: dict[str, Any]) -> str:
    """What was measured, on what, and beside whom."""
    machine = result["machine"]
    lines = [
        "# Swapping weights under load, measured",
        "",
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Python "
        f"{machine['python']}, {result['measured_time']}. {result['model']} on "
        f"{result['engine']}, eight streams over the generation service's gRPC stream. "
        f"`python -m benchmarks.hot_swap`; in brackets 95 % intervals. {result['remark']}".rstrip(),
        "",
        "A gap lies between two messages of a stream, as its client sees them. Under load the "
        "service joins the tokens of up to 250 ms (at eight streams on two cores: of 100 ms) in "
        "one message, so a gap spans a few tokens, and a delay shorter than that may not show.",
        "",
        "| weights | swaps | gaps | p50, ms | p99, ms | longest, ms | count |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
        *gaps(result),
        "",
        *summary(result),
        "",
        "## Published figures of others",
        "",
        "None of these is the same quantity on the same hardware: they time the update of large "
        "models on many GPUs, mostly of an engine that meanwhile answers nobody. No publication "
        "that we found gives inter-token gaps around a swap.",
        "",
        "| system | what | figure | source |",
        "| --- | --- | --- | --- |",
        *("| " + " | ".join(row) + " |" for row in PUBLISHED),
    ]
    return "\n".join(lines) + "\n"


def gaps(result: dict[str, Any]) -> Iterator[str]:
    """A line for each kind of weights, with swaps and without."""
    for kind in ("lora", "full"):
        if kind not in result:
            continue
        for side, name in (("around_swaps", "around swaps"), ("no_swap", "no swap")):
            row = result[kind]["gap_seconds"][side]
            yield (
                f"| {kind} | {result[kind]['swaps']} | {name} | {interval(ms(row['p50']), 0)} "
                f"| {interval(ms(row['p99']), 0)} | {row['max'] * 1e3:.0f} | {row['count']} |"
            )


def summary(result: dict[str, Any]) -> Iterator[str]:
    """The ratios that matter, against their aims."""
    for kind in ("lora", "full"):
        if kind not in result:
            continue
        row = result[kind]
        aim = " (aim: at most 1.2)" if kind == "lora" else ""
        yield (
            f"- {kind}: p99 gap around swaps over that without "
            f"{interval(row['gap_ratio']['p99'], 2)}{aim}; from the routing table's entry to "
            f"serving {interval(row['swap_seconds'], 2)} s (median); nothing sampled for "
            f"{interval(ms(row['pause_seconds']), 2)} ms of it (median); {row['failed']} of "
            f"{row['requests']} requests failed; {row['tokens_per_second']:.0f} tokens/s."
        )
    if "full" in result:
        row = result["full"]
        yield (
            f"- full weights, {row['bytes'] / 1e6:.0f} MB: {resume(row)}the longest gap of a "
            f"swap is {interval(row['client_stall_seconds'], 2)} s above the usual one (median); "
            f"copying the same bytes takes {interval(row['copy_seconds'], 2)} s. Pause over copy: "
            f"{row['pause_over_copy']:.2f}; clients' stall over copy: "
            f"{row['client_stall_over_copy']:.2f} (aim: at most 1.5)."
        )


def resume(row: dict[str, Any]) -> str:
    """What follows the pause; results of before it was measured have no figure."""
    if "resume_seconds" not in row:
        return ""
    return (
        f"the first token came {interval(ms(row['resume_seconds']), 0)} ms after the pause "
        "(median), as keys and values of the running requests are computed again; "
    )


def ms(estimate: dict[str, float]) -> dict[str, float]:
    """Seconds as milliseconds."""
    return {name: value * 1e3 for name, value in estimate.items()}
