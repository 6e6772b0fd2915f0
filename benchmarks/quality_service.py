"""Thumbs alone teach the running service: `python -m benchmarks.quality_service [--seed 0 1 2]`.

The conditional task of `quality_task` and the recipe of docs/quality.md, "From thumbs alone", in
`tuneloop up`: gateway, generation, reward, learner and NATS as processes. Users ask over HTTP, get
four answers each, and two of these get a thumb. KTO learns from the thumbs, so does the reward
model, and GRPO from its scores of all four. Now and then the hidden preference of the version that
serves is measured on prompts that nobody asks, beside that of `quality_live`, whose trainers learn
from as many thumbs without a service.

The environment wins over the settings of the recipe. Finished seeds are kept in
benchmarks/results/quality-service.json and not run again.
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.hidden_preference import make_model
from benchmarks.loop import free_port
from benchmarks.quality_crowd import Crowd
from benchmarks.quality_live import POLICY, THUMBS, serve
from benchmarks.quality_task import END, make_tokenizer, preferences
from tuneloop.learner.stats.intervals import Estimate, mean_of
from tuneloop.supervisor.child import ServiceChild

console = Console()
RESULTS = Path(__file__).parent / "results"
RESULT = RESULTS / "quality-service.json"
FOLDER = Path("build") / "quality-service"
POINTS = 8
"""Measurements of the preference, besides that of version 0."""
SETTINGS: Mapping[str, str] = {
    "TUNELOOP_SUPERVISOR_WEIGHTS": "full",
    "TUNELOOP_SUPERVISOR_ENGINE": "transformers",
    "TUNELOOP_LEARNER_POLICY_GRADIENT": "grpo",
    "TUNELOOP_LEARNER_OBJECTIVE_WEIGHTS": '{"kto": 1, "grpo": 1}',
    "TUNELOOP_LEARNER_LEARNING_RATE": "0.001",
    "TUNELOOP_LEARNER_BATCH_SIZE": str(THUMBS),
    "TUNELOOP_LEARNER_POLICY_GRADIENT_BATCH_SIZE": "64",
    "TUNELOOP_LEARNER_REWARD_BATCH_SIZE": "32",
    "TUNELOOP_LEARNER_REWARD_REPLAY_FRACTION": "0.75",
    "TUNELOOP_LEARNER_REWARD_LEARNING_RATE": "0.001",
    "TUNELOOP_REWARD_MIN_ACCURACY": "0.85",
    # As with the trainers alone: nothing holds the policy to the base model, momentum is as usual.
    "TUNELOOP_LEARNER_KL_BUDGET": "0",
    "TUNELOOP_LEARNER_TRAINER_SETTINGS": json.dumps(
        {
            "beta_grpo": 0,
            "scale_rewards": "none",
            "anchor_weight": 0,
            "scored_rate": 1,
            "betas": [0.9, 0.999],
        }
    ),
    # A gate asks in English, of which this model has no word.
    "TUNELOOP_LEARNER_RELEASE": "off",
    # The processes share two cores.
    "TUNELOOP_LEARNER_NICENESS": "0",
    "TUNELOOP_LEARNER_THREADS": "1",
    "TUNELOOP_GENERATION_THREADS": "1",
    "TUNELOOP_REWARD_THREADS": "1",
}
QUICK = {"TUNELOOP_REWARD_MIN_ACCURACY": "0"}
"""GRPO at once, from whatever the reward model says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The service after some thumbs."""

    thumbs: int
    policy_version: int
    reward_model_version: int
    ranking_accuracy: float | None
    """Of the reward model, on thumbs that it had not learned from."""
    used: Mapping[str, int]
    """Samples that were learned from, by objective."""
    preference: Estimate
    """Of the version that serves."""
    trainers: float | None
    """Preference after as many thumbs without a service."""
    seconds: float
    """Since the first request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One seed."""

    folder: Path
    """Of the models and of the service's data."""
    seed: int
    thumbs: int

    @property
    def data_dir(self) -> Path:
        """The service's data folder."""
        return self.folder / "data"


def score_at(curve: Sequence[Sequence[float]], step: float) -> float | None:
    """Return a curve's score at a step, between two of its points; None beyond its end."""
    for (left, low), (right, high) in pairwise(curve):
        if left <= step <= right:
            return low + (high - low) * (step - left) / (right - left)
    return None


def curve_of_trainers(seed: int) -> Sequence[Sequence[float]]:
    """Return what `learner_quality` found of the recipe and the seed; empty if nothing."""
    for path in sorted(RESULTS.glob("learner-quality-*.json")):
        for cell in json.loads(path.read_text()).get("thumbs", ()):
            if cell["kto"] and cell["grpo"] and seed in cell["seeds"]:
                curve: Sequence[Sequence[float]] = cell["curves"][cell["seeds"].index(seed)]
                return curve
    return ()


def points_of(thumbs: int) -> set[int]:
    """Return the rounds after which the preference is measured."""
    rounds = max(1, thumbs // THUMBS)
    return {round(rounds * point / POINTS) for point in range(1, POINTS + 1)} - {0}


def make_models(folder: Path, seed: int) -> dict[str, str]:
    """Write the policy and the reward model's backbone; return the settings that name them."""
    model = make_model(folder / "model", seed)
    # In answers of the policy the unknown word is a word like any other, which the reader sees.
    make_tokenizer(unknown=None).save_pretrained(model)
    backbone = make_model(folder / "backbone", seed, spread=64**-0.5)
    make_tokenizer().save_pretrained(backbone)
    for path in (model, backbone):
        end_with(path, END)
    return {
        "TUNELOOP_SUPERVISOR_MODEL": str(model),
        "TUNELOOP_SUPERVISOR_REWARD_MODEL": str(backbone),
    }


def end_with(folder: Path, token: int) -> None:
    """Make one token a model's only end; transformers says 2 otherwise, which is a word here."""
    for name in ("config.json", "generation_config.json"):
        document = json.loads((folder / name).read_text())
        document |= {"eos_token_id": token, "bos_token_id": None}
        (folder / name).write_text(json.dumps(document, indent=2) + "\n")


async def measure(client: httpx.AsyncClient, run: Run, *, thumbs: int, seconds: float) -> Row:
    """Return how the service stands."""
    serving = (await client.get("/v1/policies")).raise_for_status().json()
    status = (await client.get("/v1/learner")).raise_for_status().json()
    version, reader = int(serving["policy_version"]), int(status["reward_model_version"])
    folder = version_folder(run.data_dir, POLICY, version) if version else run.folder / "model"
    found = await asyncio.to_thread(lambda: mean_of(preferences(serve(folder), conditional=True)))
    return Row(
        thumbs=thumbs,
        policy_version=version,
        reward_model_version=reader,
        ranking_accuracy=ranking_accuracy(run.data_dir, reader),
        used={s["objective"]: s["used"] for s in status["samples"] if s["used"]},
        preference=found,
        trainers=score_at(curve_of_trainers(run.seed), thumbs / THUMBS),
        seconds=seconds,
    )


def version_folder(data_dir: Path, policy: str, version: int) -> Path:
    """Return where the service keeps a version."""
    return data_dir / "weights" / policy / f"{version:08d}"


def ranking_accuracy(data_dir: Path, version: int) -> float | None:
    """Return how well a version of the reward model ranked what it had not learned from."""
    if version == 0:
        return None
    folder = version_folder(data_dir, f"{POLICY}-reward-model", version)
    metrics = json.loads((folder / "manifest.json").read_text())["metrics"]
    found: float | None = metrics.get("ranking_accuracy")
    return found


async def wait_for_learner(client: httpx.AsyncClient) -> None:
    """Wait until the learner answers too: it starts after generation, and chats do not need it."""
    async with asyncio.timeout(300):
        while (await client.get("/v1/learner")).status_code != httpx.codes.OK:
            await asyncio.sleep(0.5)


async def teach(url: str, run: Run) -> list[Row]:
    """Let users press thumbs, never further ahead of the learner than a round."""
    points = points_of(run.thumbs)
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        await wait_for_learner(client)
        started = time.monotonic()
        crowd, rows = Crowd(client, run.seed), [await measure(client, run, thumbs=0, seconds=0.0)]
        for number in range(1, max(points) + 1):
            await crowd.round()
            await crowd.wait(0 if number in points else THUMBS)
            if number in points:
                seconds = time.monotonic() - started
                rows.append(await measure(client, run, thumbs=crowd.thumbs, seconds=seconds))
                console.print(
                    f"seed {run.seed}: {crowd.thumbs} thumbs, version {rows[-1].policy_version}, "
                    f"preference {shown(rows[-1].preference)}, {seconds:.0f} s"
                )
    return rows


def settings_of() -> dict[str, str]:
    """Return the recipe, with what the environment says instead."""
    return {name: os.environ.get(name, value) for name, value in SETTINGS.items()}


def run_seed(seed: int, thumbs: int, settings: Mapping[str, str]) -> list[Row]:
    """Start a service, teach it, stop it; what it kept stays only where this fails."""
    run = Run(folder=FOLDER.resolve() / f"seed-{seed}", seed=seed, thumbs=thumbs)
    shutil.rmtree(run.folder, ignore_errors=True)
    environment = {
        **{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        **settings,
        **make_models(run.folder, seed),
        "TUNELOOP_LEARNER_SEED": str(seed),
    }
    with ServiceChild(run.data_dir, port=free_port(), environment=environment) as service:
        console.print(f"seed {seed}: starting the service; its log is {service.log_path}")
        service.wait_until_ready()
        rows = asyncio.run(teach(service.url, run))
    shutil.rmtree(run.folder)
    return rows


def shown(estimate: Estimate) -> str:
    """Return a figure and its interval."""
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def table(run: Mapping[str, Any]) -> Table:
    """Return a seed's rows for the terminal."""
    result = Table(title=f"From thumbs alone, through the service: seed {run['seed']}")
    columns = ("thumbs", "version", "hidden preference", "trainers", "reader", "used", "seconds")
    for column in columns:
        result.add_column(column, justify="right")
    for row in run["rows"]:
        accuracy, trainers = row["ranking_accuracy"], row["trainers"]
        result.add_row(
            str(row["thumbs"]),
            str(row["policy_version"]),
            shown(Estimate(**row["preference"])),
            "–" if trainers is None else f"{trainers:.3f}",
            "–" if accuracy is None else f"{accuracy:.2f}",
            ", ".join(f"{name} {count}" for name, count in row["used"].items()),
            f"{row['seconds']:.0f}",
        )
    return result


def is_finished(run: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Return whether a run of the results is the one that is wanted."""
    return all(run.get(name) == value for name, value in wanted.items())


def main() -> None:
    """Run the seeds that are missing, and print the table of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--thumbs", type=int, default=540 * THUMBS)
    parser.add_argument("--quick", action="store_true", help="a smoke test; writes no results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # So that the service is stopped by the end of a job, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    thumbs, settings = options.thumbs, settings_of()
    if options.quick:
        thumbs, settings = POINTS * THUMBS, settings | QUICK
    document: dict[str, Any] = {"runs": []}
    if RESULT.exists() and not options.quick:
        document = json.loads(RESULT.read_text())
    for seed in options.seed:
        wanted = {"seed": seed, "thumbs": thumbs, "settings": settings}
        run = next((run for run in document["runs"] if is_finished(run, wanted)), None)
        if run is None:
            rows = run_seed(seed, thumbs, settings)
            run = {
                **wanted,
                "device": f"cpu-{os.cpu_count()}-cores-{platform.machine()}",
                "rows": [asdict(row) for row in rows],
            }
            document["runs"].append(run)
            if not options.quick:
                RESULTS.mkdir(exist_ok=True)
                RESULT.write_text(json.dumps(document, indent=1) + "\n")
        Console(width=150).print(table(run))


if __name__ == "__main__":
    main()
