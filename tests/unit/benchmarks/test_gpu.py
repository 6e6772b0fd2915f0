"""The check of a first GPU, on a CPU with tiny models: every part runs, and continues."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_service
from benchmarks.gpu import run_parts


def test_the_learners_parts_run_and_are_kept(tmp_path: Path) -> None:
    command = ["learner", "--device", "cpu", "--quick", "--results", str(tmp_path)]
    assert gpu.main(command) == 0
    [path] = tmp_path.glob("gpu-learner-*-quick.json")
    done = json.loads(path.read_text())
    names = {"ceilings", "tiny full", "tiny lora", "log-probs against float32"}
    assert names <= set(done["parts"])
    assert done["parts"]["ceilings"]["matmul_flops_per_second"] > 1e8
    assert done["parts"]["tiny full, checkpointing"]["tokens_per_second"] > 0
    assert done["parts"]["log-probs against float32"]["largest_difference"] < 0.1
    # Nothing is measured twice.
    assert gpu.main(command) == 0
    assert json.loads(path.read_text()) == done


def test_what_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    tries = []

    def flaky() -> dict[str, int]:
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("no kernel image")
        return {"figure": 3}

    path = tmp_path / "results" / "gpu.json"
    first = run_parts({"a": flaky, "b": lambda: {"figure": 1}}, path, {})
    assert first["parts"]["a"]["error"] == "RuntimeError: no kernel image"
    assert first["parts"]["b"]["figure"] == 1
    again = run_parts({"a": flaky, "b": lambda: pytest.fail("measured twice")}, path, {})
    assert again["parts"]["a"]["figure"] == 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_services_parts_run(tmp_path: Path) -> None:
    command = ["service", "--device", "cpu", "--quick", "--results", str(tmp_path)]
    assert gpu.main(command) == 0
    [path] = tmp_path.glob("gpu-service-*-quick.json")
    loop = json.loads(path.read_text())["parts"]["the loop"]
    assert loop["throughput"][0]["failed"] == 0
    assert loop["thumbs_to_serving_seconds"]
    assert loop["generation_again_seconds"] > 0
    assert set(gpu_service.parts("smollm2-135m-instruct", "cpu", quick=True)) <= set(
        json.loads(path.read_text())["parts"]
    )
