"""Clocks that are set while everything runs: each process has one of its own."""

import asyncio
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from chaos.faults import Fault, Stage

STEP_SECONDS = 60
LASTS_SECONDS = 8.0
SOURCE = Path(__file__).with_name("clock.c")
CLOCKED = ("generation", "reward", "learner", "gateway")
"""Not nats-server, which is linked statically: its clock stays."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """A folder with a file for each process; see `clock.c`."""

    folder: Path
    library: Path

    def set(self, name: str, seconds: int) -> None:
        """Set a process's clock ahead by this much."""
        with (self.folder / name).open("r+b" if (self.folder / name).exists() else "wb") as file:
            file.write(struct.pack("q", seconds * 10**9))

    def environment(self) -> dict[str, str]:
        """Return what processes have to be started with."""
        return {"LD_PRELOAD": str(self.library), "CLOCKS": str(self.folder)}


def build_clocks(folder: Path) -> Clocks | None:
    """Return clocks that are right; None without a C compiler or with another libc than glibc."""
    folder.mkdir(parents=True)
    clocks = Clocks(folder, folder / "clock.so")
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(clocks.library), str(SOURCE), "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    for name in CLOCKED:
        clocks.set(name, 0)
    return clocks


async def step_clocks(stage: Stage) -> None:
    """Every clock goes a minute ahead or back, twice, and then right again."""
    if stage.clocks is None:
        return
    check_use(stage, stage.clocks)
    try:
        for _ in range(2):
            for name in CLOCKED:
                stage.clocks.set(name, stage.chance.choice((-STEP_SECONDS, STEP_SECONDS)))
            await asyncio.sleep(LASTS_SECONDS)
    finally:
        for name in CLOCKED:
            stage.clocks.set(name, 0)
    await asyncio.sleep(LASTS_SECONDS)
    await stage.until_ready(CLOCKED)


def check_use(stage: Stage, clocks: Clocks) -> None:
    """Raise `AssertionError` unless every process has its clock."""
    for name in CLOCKED:
        used = Path("/proc", str(stage.processes()[name]["pid"]), "maps").read_text()
        if str(clocks.folder / name) not in used:
            raise AssertionError(f"{name} does not use its clock")


clock_steps: dict[str, Fault] = {"clocks stepped": step_clocks}
