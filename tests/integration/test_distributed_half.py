"""Full weights on two ranks in bfloat16, as on GPUs: what each keeps, and what comes out.

Gloo and a CPU stand in for NCCL and GPUs; nothing of it was run on one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.policy_samples import SampleMaker

from tuneloop.learner.followers import follow
from tuneloop.learner.models import forward, weight_files
from tuneloop.learner.models.world import (
    ALONE,
    World,
    dismiss_followers,
    join,
    local_tensor,
)
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.policies import WeightsKind

pytestmark = pytest.mark.slow
TORCHRUN = Path(sys.executable).with_name("torchrun")
PYTHONPATH = os.pathsep.join((str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")))
ENVIRONMENT = os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}


def learn(folder: Path, kind: WeightsKind, saved: Path, world: World = ALONE) -> dict[str, Any]:
    settings = TrainerSettings(kind=kind, learning_rate=1e-4, threads=1, token_budget=60)
    trainer = PolicyTrainer(folder, settings, world, base_model="tiny")
    model = trainer.model
    seen: set[str] = set()
    autocast: set[bool] = set()

    def look(module: Any, given: Any, output: Any) -> None:
        weight = next(module.parameters())
        seen.add(f"{weight.dtype} of {weight.numel()}")
        autocast.add(torch.is_autocast_enabled("cpu"))

    model._model.base_model.layers[0].mlp.down_proj.register_forward_hook(look)
    losses = [
        trainer.step({"kto": SampleMaker(seed).thumbs(6)}).metrics["loss"] for seed in range(3)
    ]
    trainer.save_weights(saved)
    return {
        "losses": losses,
        "seen": sorted(seen),
        "autocast": sorted(autocast),
        "kept": sorted({str(p.dtype) for p in model.parameters().values()}),
        "share": sum(local_tensor(p).numel() for p in model.parameters().values())
        / sum(p.numel() for p in model.parameters().values()),
        "whole": model._gathered is not None,
        "reference": sorted({str(p.dtype) for p in reference_of(model).parameters()}),
    }


def reference_of(model: Any) -> Any:
    return model._model if model._reference is None else model._reference


def main(folder: Path, output: Path) -> None:
    """What each of the two processes runs."""
    forward.HALF_ON.add("cpu")
    # Steps this small are lost in the rounding of what is published.
    weight_files.half_dtype_of = lambda folder: torch.float32
    world = join()
    if not world.is_leader:
        follow(world)
        return
    with dismiss_followers(world):
        for kind in WeightsKind:
            found = learn(folder, kind, output / kind.value, world)
            (output / f"{kind.value}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def two_ranks(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("half")
    command = [str(TORCHRUN), "--standalone", "--nproc-per-node", "2", __file__]
    result = subprocess.run(
        [*command, str(tiny_policy), str(output)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=ENVIRONMENT,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return output


@pytest.mark.parametrize("kind", WeightsKind)
def test_two_ranks_in_bfloat16_learn_what_one_learns_in_float32(
    tiny_policy: Path, two_ranks: Path, tmp_path: Path, kind: WeightsKind
) -> None:
    expected = learn(tiny_policy, kind, tmp_path / "one")
    found = json.loads((two_ranks / f"{kind.value}.json").read_text())
    assert found["losses"] == pytest.approx(expected["losses"], rel=0.02)
    [name] = {path.name for path in (tmp_path / "one").glob("*.safetensors")}
    one, two = (load_file(root / name) for root in (tmp_path / "one", two_ranks / kind.value))
    assert one.keys() == two.keys()
    assert {t.dtype for t in two.values()} == {torch.float32}
    # Adam's first steps are as long as the rate in every weight, so a gradient near 0 that rounding
    # turns round is a whole step off: the whole moves the same way.
    PolicyTrainer(tiny_policy, TrainerSettings(kind=kind, threads=1)).save_weights(tmp_path / "0")
    zero = load_file(tmp_path / "0" / name)
    moves = [torch.cat([(w[n] - zero[n]).flatten() for n in one]) for w in (one, two)]
    assert torch.cosine_similarity(*moves, dim=0) > 0.9
    assert moves[0].abs().max() > 1e-4


def test_full_weights_are_brought_together_in_bfloat16_and_kept_in_parts(two_ranks: Path) -> None:
    found = json.loads((two_ranks / "full.json").read_text())
    # Each layer is whole only while it runs, in bfloat16, without autocast making a copy.
    assert all(name.startswith("torch.bfloat16") for name in found["seen"])
    assert found["autocast"] == [False]
    assert found["kept"] == ["torch.float32"]
    assert found["share"] < 0.6
    # What is published was gathered in main memory, and is gone.
    assert not found["whole"]
    assert found["reference"] == ["torch.bfloat16"]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
