"""`make demo`: the whole service learns a hidden taste from simulated users' thumbs.

Starts the service in a data folder of its own, measures version 0 on fresh questions, lets sixteen
users at a time chat and press thumbs, measures the last version on the same fresh questions, prints
the table, and asks both versions the ability suite. Exit status 1 when the last version is not
clearly better.
"""

import argparse
import asyncio
import shutil
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path

import httpx
from rich.console import Console

from examples.demo.prompts import questions
from examples.demo.report import VersionRow, draw, table, version_row
from examples.demo.users import Answer, chat_round, evaluate
from tuneloop.errors import TuneloopError
from tuneloop.learner.abilities.suite import BUILTIN
from tuneloop.learner.release.gate.suites import KeptScores
from tuneloop.supervisor.child import ServiceChild

console = Console()
SETTINGS = {
    "TUNELOOP_LEARNER_BATCH_SIZE": "16",
    "TUNELOOP_LEARNER_BATCH_WAIT_SECONDS": "30",
    "TUNELOOP_LEARNER_PUBLISH_EVERY_STEPS": "1",
    "TUNELOOP_LEARNER_PUBLISH_EVERY_SECONDS": "0",
    "TUNELOOP_LEARNER_BETA_KTO": "0.1",
    "TUNELOOP_LEARNER_POLICY_GRADIENT": "off",
    "TUNELOOP_LEARNER_NICENESS": "0",
}
"""KTO on thumbs alone, one version for each sixteen; without PPO the table shows one thing."""


async def serving_version(client: httpx.AsyncClient) -> int:
    """The version that would answer now."""
    response = await client.get("/v1/policies")
    response.raise_for_status()
    return int(response.json()["policy_version"])


async def wait_for_version(client: httpx.AsyncClient, above: int) -> None:
    """Until a version newer than `above` serves; raises `TimeoutError` after four minutes."""
    async with asyncio.timeout(240):
        while await serving_version(client) <= above:
            await asyncio.sleep(0.5)


async def score(client: httpx.AsyncClient, answers: list[Answer]) -> dict[str, float]:
    """Rewards by completion id, from the reward service as it stands at the end."""
    rewards = {}
    for answer in answers:
        body = {
            "messages": [{"role": "user", "content": answer.question}],
            "completions": [answer.text],
        }
        response = await client.post("/v1/score", json=body)
        response.raise_for_status()
        value = response.json()["scores"][0]
        if value is not None:
            rewards[answer.completion_id] = value
    return rewards


async def manifest_kl(client: httpx.AsyncClient, version: int) -> float | None:
    """KL to the reference policy, as measured while the version was trained."""
    if version == 0:
        return None
    response = await client.get(f"/v1/policies/{version}")
    response.raise_for_status()
    return response.json()["manifest"]["metrics"].get("kl")


async def learn(
    client: httpx.AsyncClient, asked: list[str], *, rounds: int, seed: int, deadline: float
) -> list[Answer]:
    """Rounds of sixteen chats and thumbs, each answered by the version the last round made."""
    answers: list[Answer] = []
    for number in range(rounds):
        before = await serving_version(client)
        fresh = await chat_round(client, asked, seed=seed + number)
        answers += fresh
        liked = sum(a.liked for a in fresh)
        tokens = sum(a.tokens for a in fresh) / len(fresh)
        console.print(
            f"round {number + 1:2d}/{rounds}  version {before:2d}  "
            f"thumbs up {liked:2d}/16  mean tokens {tokens:3.0f}  {'█' * liked}{'·' * (16 - liked)}"
        )
        await wait_for_version(client, before)
        if time.monotonic() > deadline:
            console.print("time is up: going on to the evaluation")
            break
    return answers


async def rows_by_version(
    client: httpx.AsyncClient, answers: list[Answer], rewards: dict[str, float], suites: Path
) -> list[VersionRow]:
    """One row for each version that answered a user."""
    by_version: dict[int, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_version[answer.policy_version].append(answer)
    rows = []
    for version, met in sorted(by_version.items()):
        kl = await manifest_kl(client, version)
        rows.append(version_row(str(version), met, rewards, kl, abilities(suites, version)))
    return rows


def abilities(folder: Path, version: int) -> float | None:
    """What the gate measured of a version on its part of the ability suite."""
    scores = KeptScores(folder).of_version(version)
    if scores is None:
        return None
    values = scores["abilities"].values()
    return sum(values) / len(values)


def compare_abilities(data_dir: Path, version: int) -> None:
    """Ask version 0 and `version` the whole ability suite, and print how they differ."""
    from tuneloop.learner.commands.evaluate import show_abilities
    from tuneloop.learner.offline.compare_abilities import evaluate_abilities
    from tuneloop.learner.offline.versions import Versions

    console.print("both versions answer the ability suite, which nobody judged …")
    versions = Versions(data_dir=data_dir)
    found = evaluate_abilities(versions, "0", str(version), suites=[BUILTIN], sampled_items=48)
    show_abilities(found, "0", str(version))


async def run(arguments: argparse.Namespace, url: str) -> tuple[int, bool]:
    """The last version, and whether it is clearly above version 0."""
    suites = arguments.data_dir / "learner" / "suites"
    deadline = time.monotonic() + arguments.minutes * 60
    async with httpx.AsyncClient(base_url=url, timeout=180) as client:
        asked, fresh = questions(arguments.seed)
        console.print(f"version 0 answers {len(fresh)} fresh questions …")
        before = await evaluate(client, fresh)
        answers = await learn(
            client, asked, rounds=arguments.rounds, seed=arguments.seed, deadline=deadline
        )
        last = await serving_version(client)
        console.print(f"version {last} answers the same fresh questions …")
        after = await evaluate(client, fresh)
        rewards = await score(client, before + answers + after)
        by_version = await rows_by_version(client, answers, rewards, suites)
        first_row = version_row("0", before, rewards, None, abilities(suites, 0))
        kl = await manifest_kl(client, last)
        last_row = version_row(str(last), after, rewards, kl, abilities(suites, last))
    console.print(table(by_version, "As the users met it"))
    console.print(table([first_row, last_row], "On fresh questions, never trained on"))
    picture = arguments.data_dir / "demo.png"
    draw(by_version, picture)
    console.print(f"picture: {picture}")
    better = last_row.interval[0] > first_row.interval[1]
    verdict = "clearly above" if better else "NOT clearly above"
    console.print(f"version {last} is {verdict} version 0 on fresh questions")
    return last, better


def main() -> int:
    """Parse, start, run, stop."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--rounds", type=int, default=16, help="sixteen chats and thumbs each")
    parser.add_argument("--minutes", type=float, default=11, help="stop learning after this long")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--port", type=int, default=8010)
    parser.add_argument("--data-dir", type=Path, default=Path(".tuneloop-demo"))
    arguments = parser.parse_args()
    settings = {**SETTINGS, "TUNELOOP_LEARNER_SEED": str(arguments.seed)}
    service = ServiceChild(arguments.data_dir, port=arguments.port, environment=settings)
    # A demo that is ended any way stops its service, and another one's is left alone.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    service.require_port()
    shutil.rmtree(arguments.data_dir, ignore_errors=True)
    with service:
        console.print(f"starting the service; its log is {service.log_path} …")
        service.wait_until_ready()
        last, better = asyncio.run(run(arguments, service.url))
    compare_abilities(arguments.data_dir, last)
    return 0 if better else 1


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except TuneloopError as error:
        raise SystemExit(f"make demo: {error.message}") from error
