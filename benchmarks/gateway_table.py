"""The results of `benchmarks.gateway` as Markdown."""

from collections.abc import Iterator, Sequence
from typing import Any

SIDES = {
    "jetstream_serial": "JetStream, one after the other",
    "jetstream_256_at_once": "JetStream, 256 at once",
    "jetstream_publish_async": "JetStream, `publish_async`",
    "gateway_one_client": "`POST /v1/feedback`, one client",
    "gateway": "`POST /v1/feedback`, {clients} clients",
    "gateway_with_ids": "`POST /v1/feedback` with the client's ids, {clients} clients",
    "gateway_batches": "`POST /v1/feedback/batch`, {batch} each",
}


def table(result: dict[str, Any]) -> str:
    """What was measured, and on what."""
    machine = result["machine"]
    lines = [
        "# The gateway, measured",
        "",
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Python "
        f"{machine['python']}, {result['measured_time']}. `python -m benchmarks.gateway`; in "
        "brackets 95 % intervals over the pairs of runs.",
    ]
    if "own" in result:
        lines += ["", *own(result["own"]), "", *feedback(result["feedback"])]
    if "chat" in result:
        lines += ["", *chat(result["model"], result["chat"]), ""]
        lines += ["With all of tuneloop running, the learner taking in what comes:", ""]
        lines += feedback(result["feedback_beside_all"])
    return "\n".join(lines) + "\n"


def own(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The gateway by itself."""
    yield "Added by the gateway to a generation service of fixed pace, HTTP's client included:"
    yield ""
    yield "| streams | first token p50, ms | p99, ms | later tokens p50, ms | p99, ms |"
    yield "| ---: | ---: | ---: | ---: | ---: |"
    for row in rows:
        first, later = row["added_first_token_ms"], row["added_later_token_ms"]
        cells = (first["p50"], first["p99"], later["p50"], later["p99"])
        yield f"| {row['streams']} | " + " | ".join(interval(cell, 2) for cell in cells) + " |"


def feedback(document: dict[str, Any]) -> Iterator[str]:
    """Durable feedback."""
    yield (
        f"Feedback on disk before it is acknowledged (`sync_interval: always`, "
        f"{document['event_bytes']} bytes an event; {document['acknowledged']} acknowledged, "
        f"{document['stored']} stored):"
    )
    yield ""
    yield "| way | events/s | share of JetStream's best | request p50, ms | p99, ms |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, row in document["sides"].items():
        yield (
            f"| {SIDES[name].format(**document)} | {interval(row['events_per_second'], 0)} "
            f"| {interval(row['share_of_jetstream'], 2)} "
            f"| {row['request_ms_p50']:.1f} | {row['request_ms_p99']:.1f} |"
        )


def chat(model: str, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Chat of a model."""
    yield f"Chat with {model}, `tuneloop up` beside vLLM's own server:"
    yield ""
    yield (
        "| streams | tokens each | learning | tokens/s | vLLM's | ratio "
        "| added to the first token p50, ms | p99, ms "
        "| first token p50, ms | vLLM's | added per token p50, ms | p99, ms | failed |"
    )
    yield "| ---: " * 13 + "|"
    for row in rows:
        first, token = row["first_token_ms"], row["time_per_token_ms"]
        cells = (
            str(row["streams"]),
            str(row["max_tokens"]),
            "yes" if row["train"] else "no",
            f"{row['tuneloop_tokens_per_second']['value']:.1f}",
            f"{row['vllm_tokens_per_second']['value']:.1f}",
            interval(row["throughput_ratio"], 3),
            interval(first["p50"]["added"], 1),
            interval(first["p99"]["added"], 1),
            f"{first['p50']['tuneloop']:.0f}",
            f"{first['p50']['vllm']:.0f}",
            interval(token["p50"]["added"], 2),
            interval(token["p99"]["added"], 2),
            str(row["failed"]),
        )
        yield "| " + " | ".join(cells) + " |"


def interval(estimate: dict[str, float], digits: int) -> str:
    """A value and the ends of its interval."""
    value, low, high = (f"{estimate[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
