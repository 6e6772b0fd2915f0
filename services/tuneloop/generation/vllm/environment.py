"""Prepares environment variables and the disk cache for vLLM."""

import os
import sysconfig
from pathlib import Path


def prepare_environment(threads: int) -> None:
    """Set the environment variables that vLLM reads; its processes inherit them."""
    os.environ.update(
        VLLM_NO_USAGE_STATS="1",
        VLLM_DO_NOT_TRACK="1",
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
    )
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    cpus = sorted(os.sched_getaffinity(0))
    chosen = ",".join(map(str, cpus[: threads or len(cpus)]))
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = chosen
    # In Intel's OpenMP idle threads sleep after a few milliseconds. In GNU's they spin, and starve
    # the learner on the same machine.
    openmp = Path(sysconfig.get_path("data")) / "lib" / "libiomp5.so"
    if openmp.exists() and "libiomp" not in os.environ.get("LD_PRELOAD", ""):
        preloaded = os.environ.get("LD_PRELOAD", "")
        os.environ["LD_PRELOAD"] = f"{openmp}:{preloaded}" if preloaded else str(openmp)


def bind_threads() -> None:
    """Set what OpenMP reads as vLLM does for a worker process, for one that is the engine's too."""
    cpus = os.environ["VLLM_CPU_OMP_THREADS_BIND"].split(",")
    os.environ.update(
        OMP_NUM_THREADS=str(len(cpus)),
        KMP_AFFINITY=f"granularity=fine,explicit,proclist=[{','.join(cpus)}]",
        # Milliseconds that an idle thread spins before it sleeps.
        KMP_BLOCKTIME="5",
        KMP_TPAUSE="0",
    )
