"""The NVIDIA GPUs of this machine, and the memory of well-known ones."""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from tuneloop.errors import SettingsError

NVIDIA_SMI_SECONDS = 20
GPU_FIELDS = ("name", "driver_version", "memory.total", "memory.used")
gpu_mebibytes: Mapping[str, int] = {
    "l4": 23_034,
    "rtx4090": 24_564,
    "l40s": 46_068,
    "a100-40": 40_960,
    "a100": 81_920,
    "h100": 81_559,
    "h200": 143_771,
    "b200": 183_359,
}
"""What nvidia-smi reports of each, for a plan without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU; memory in bytes."""

    name: str
    driver: str
    memory: int
    used: int

    @property
    def driver_major(self) -> int:
        """The number before the first dot; 0 if there is none."""
        major = self.driver.split(".")[0]
        return int(major) if major.isdecimal() else 0


class DriverError(Exception):
    """nvidia-smi is installed and fails."""


def find_gpus() -> list[Gpu]:
    """Return the machine's GPUs, none if nvidia-smi is not installed. Raises `DriverError`."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DriverError(str(error)) from error
    if done.returncode != 0:
        raise DriverError((done.stdout + done.stderr).strip() or f"status {done.returncode}")
    return [parse_gpu(line) for line in done.stdout.splitlines() if line.strip()]


def parse_gpu(line: str) -> Gpu:
    """Parse a GPU's line; memory is 0 if the driver does not report it (shared memory)."""
    name, driver, total, used = (part.strip() for part in line.rsplit(",", 3))
    mebibytes = [int(number) if number.isdecimal() else 0 for number in (total, used)]
    return Gpu(name=name, driver=driver, memory=mebibytes[0] << 20, used=mebibytes[1] << 20)


def check_device(device: str) -> None:
    """Raise `SettingsError` where torch cannot compute on the device."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        problem = str(error).partition("\n")[0]
        raise SettingsError(f"device {device}: {problem}", param="device") from error
