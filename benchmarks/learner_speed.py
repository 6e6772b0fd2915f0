"""Optimizer steps of tuneloop and of TRL on the same batches: tokens/s and peak memory.

    python -m benchmarks.learner_speed [--model smollm2-135m-instruct] [--pairs 3] [--quick]

SFT, KTO, DPO, GRPO's update (given completions: nothing is generated) and the reward model, all
weights, against TRL as it comes and TRL at its best. Every side gets the same token ids and runs in
a process of its own; they take steps in turn (A B C A B C …), so that drift of the machine cancels
out, and their losses and gradient norms are compared, so that it is the same work. A batch's
lengths are lognormal; for GRPO all completions have one prompt.

TRL at its best: no gradient checkpointing, reference log-probs computed before, KTO without its
second pass (z = 0, as here), and of several ways to cut a skewed batch (three rows of like length
at once, one row at once, SFT also one row without padding) the one that is fastest in a trial. Both
sides have what the other has: known reference log-probs, float32 on a CPU, as many threads.

`--shared` measures tuneloop alone, on KTO: turns of conversations, and questions under one system
prompt, whose common beginnings are computed once, beside rows as long that have nothing in common.
It writes nothing.

On a GPU it also reports model FLOPs utilization for random models shaped like 0.6B and 4B ones.

Writes benchmarks/results/learner-speed-<device>.json and prints a table.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.learner_sides import Measured, Side, serve
from benchmarks.learner_work import Work, all_work, shared_work
from benchmarks.loop import RESULTS, device_name
from tuneloop.models.resolve import resolve

console = Console()
SAME = 5e-3
"""Relative difference up to which two losses, or gradient norms, count as the same."""


class Competitor:
    """One side, living in its own process."""

    def __init__(self, side: Side, work: Work) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(theirs, side, work), daemon=True)
        self._process.start()
        theirs.close()
        self.side = side
        self.measured: list[Measured] = []

    def wait(self) -> None:
        """Until it has loaded; raises `EOFError` if it could not."""
        self._connection.recv()

    def step(self) -> Measured:
        """Take a step; raises `EOFError` if the process has died."""
        self._connection.send("step")
        measured: Measured = self._connection.recv()
        self.measured.append(measured)
        return measured

    def stop(self) -> None:
        """End the process and give its memory back."""
        with contextlib.suppress(OSError):
            self._connection.send("stop")
        self._process.join(timeout=30)
        self._process.kill()


@contextlib.contextmanager
def competing(sides: Sequence[Side], work: Work) -> Iterator[list[Competitor]]:
    """Start the sides, and stop them in the end."""
    competitors: list[Competitor] = []
    try:
        for side in sides:
            competitors.append(Competitor(side, work))
        for competitor in competitors:
            competitor.wait()
        yield competitors
    finally:
        for competitor in competitors:
            competitor.stop()


def candidates(side: Side, work: Work) -> list[Side]:
    """Ways in which TRL may be given the batch; all rows of a skewed one at once is the slowest."""
    if work.padding == 1.0:
        return [side]
    ways = [replace(side, rows_at_once=3), replace(side, rows_at_once=1)]
    if work.objective == "sft":
        ways.append(replace(side, padding_free=True))
    return ways


def best_of(sides: Sequence[Side], work: Work) -> Side:
    """The one whose second step is fastest; the first of each is a warm-up."""
    if len(sides) == 1:
        return sides[0]
    seconds: list[float] = []
    for side in sides:
        with competing([side], work) as (competitor,):
            competitor.step()
            seconds.append(competitor.step().seconds)
    return sides[seconds.index(min(seconds))]


def compare(work: Work, sides: Sequence[Side], pairs: int) -> dict[str, Any]:
    """Take `pairs` steps on each side in turn, after one to warm up."""
    with competing(sides, work) as competitors:
        for _ in range(pairs + 1):
            for competitor in competitors:
                competitor.step()
    ours, *others = competitors
    report: dict[str, Any] = {
        "tokens": work.tokens,
        "rows": len(work.rows),
        "padding": work.padding,
        "sides": [summary(competitor, work) for competitor in competitors],
    }
    for other in others:
        name = other.side.name
        report[f"speedup_over_{name}"] = [
            theirs.seconds / mine.seconds
            for mine, theirs in zip(ours.measured[1:], other.measured[1:], strict=True)
        ]
        report[f"same_work_as_{name}"] = same_work(ours.measured, other.measured)
    return report


def summary(competitor: Competitor, work: Work) -> dict[str, Any]:
    """What a side came to."""
    seconds = statistics.median(m.seconds for m in competitor.measured[1:])
    return {
        "name": competitor.side.name,
        "rows_at_once": competitor.side.rows_at_once,
        "padding_free": competitor.side.padding_free,
        "tokens_per_second": work.tokens / seconds,
        "peak_bytes": max(m.peak_bytes for m in competitor.measured),
        "steps": [asdict(m) for m in competitor.measured],
    }


def same_work(mine: Sequence[Measured], theirs: Sequence[Measured]) -> bool:
    """Whether losses and gradient norms agree, step by step."""

    def alike(a: float, b: float) -> bool:
        return abs(a - b) <= SAME * max(abs(a), abs(b)) + 1e-4

    return all(
        alike(a.loss, b.loss) and alike(a.gradient_norm, b.gradient_norm)
        for a, b in zip(mine, theirs, strict=True)
    )


def show(reports: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(
        title="Optimizer steps on the same batches: median (smallest–largest of the pairs)"
    )
    for heading in (
        "batch",
        "tokens",
        "padding",
        "tuneloop tok/s",
        "TRL tuned",
        "TRL default",
        "× tuned",
        "× default",
        "peak GiB",
        "same work",
    ):
        table.add_column(heading, justify="right")
    for name, report in reports.items():
        speeds = [f"{side['tokens_per_second']:.0f}" for side in report["sides"]]
        peaks = [f"{side['peak_bytes'] / 2**30:.1f}" for side in report["sides"]]
        table.add_row(
            name,
            str(report["tokens"]),
            f"{report['padding']:.1f}",
            *speeds,
            spread(report["speedup_over_trl_tuned"]),
            spread(report["speedup_over_trl_default"]),
            " / ".join(peaks),
            "yes" if report["same_work_as_trl_tuned"] else "NO",
        )
    console.print(table)


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct", help="name or folder")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3, help="measured steps on each side")
    parser.add_argument("--only", default="", help="batches whose name begins so")
    parser.add_argument("--rows-at-once", type=int, help="TRL tuned: no trials, this many rows")
    parser.add_argument("--shared", action="store_true", help="rows that begin alike, no TRL")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one pair: a smoke test")
    return parser.parse_args()


def tiny_model(folder: Path) -> Path:
    """A random model of two layers with the tokenizer of nothing in particular."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from support.tiny_models import make_policy

    return make_policy(folder)


def main() -> None:
    """Measure, write, show."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            model, options.pairs, options.threads = tiny_model(Path(folder) / "tiny"), 1, 1
        else:
            cache = os.environ.get("TUNELOOP_CACHE_DIR", Path.home() / ".cache" / "tuneloop")
            model = resolve(options.model, Path(cache))
        (measure_shared if options.shared else measure)(options, model)


def measure_shared(options: argparse.Namespace, model: Path) -> None:
    """Show what it is worth that rows begin alike; a token counts in every row."""
    config = json.loads((model / "config.json").read_text())
    side = Side(name="tuneloop", model=model, device=options.device, threads=options.threads)
    for work in shared_work(config["vocab_size"], scale=0.1 if options.quick else 1.0):
        (found,) = compare(work, [side], options.pairs)["sides"]
        console.print(
            f"{work.name}: {work.tokens} tokens in {len(work.rows)} rows, "
            f"{found['tokens_per_second']:.0f} tokens/s, {found['peak_bytes'] / 2**30:.1f} GiB"
        )


def measure(options: argparse.Namespace, model: Path) -> None:
    """Run every batch; keep what is there after each, in case it is cut short."""
    config = json.loads((model / "config.json").read_text())
    scale = 0.1 if options.quick else 1.0
    reports: dict[str, dict[str, Any]] = {}
    for work in all_work(config["vocab_size"], scale=scale):
        if not work.name.startswith(options.only):
            continue
        console.print(f"{work.name}: {work.tokens} tokens")
        side = Side(name="tuneloop", model=model, device=options.device, threads=options.threads)
        tuned = replace(side, name="trl_tuned", rows_at_once=options.rows_at_once)
        if not (options.quick or options.rows_at_once):
            tuned = best_of(candidates(tuned, work), work)
        sides = [side, tuned, replace(side, name="trl_default")]
        reports[work.name] = compare(work, sides, options.pairs)
        if not options.quick:
            write(options, model, reports)
    show(reports)


def write(options: argparse.Namespace, model: Path, reports: dict[str, dict[str, Any]]) -> None:
    """Put the results beside those of other devices."""
    import torch
    import transformers
    import trl

    RESULTS.mkdir(exist_ok=True)
    document = {
        "device": device_name(),
        "machine": platform.machine(),
        "model": model.name,
        "threads": options.threads,
        "measured_time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, trl)},
        "batches": reports,
    }
    path = RESULTS / f"learner-speed-{device_name()}.json"
    if options.only and path.exists():
        document["batches"] = json.loads(path.read_text())["batches"] | reports
    path.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
