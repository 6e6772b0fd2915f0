"""An adapter learns on a quantized base, is served on it, and is merged into bfloat16 only."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.policy_samples import SampleMaker
from support.quantized_models import quantize, quantize_bitsandbytes

from tuneloop.errors import SettingsError
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.monitoring.logprob_gap import mean_gap
from tuneloop.learner.offline.export import export
from tuneloop.learner.offline.versions import VersionFolder
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.models.causal_lm import load_causal_lm
from tuneloop.policies import WeightsKind
from tuneloop.weights.shapes import check_adapter, read_quantization

CPU = torch.device("cpu")
SETTINGS = TrainerSettings(threads=1)


@pytest.mark.parametrize("name", ["awq", "fp8", "compressed-fp8", "bitsandbytes"])
def test_an_adapter_learns_on_a_quantized_base(
    tiny_policy: Path, tmp_path: Path, name: str
) -> None:
    base = tmp_path / "base"
    if name == "bitsandbytes":
        pytest.importorskip("bitsandbytes")
        quantize_bitsandbytes(tiny_policy, base)
    else:
        quantize(tiny_policy, base, name)
    trainer = PolicyTrainer(base, SETTINGS)
    samples = {"sft": SampleMaker().demonstrations(4)}
    sequences = [sample.sequence for sample in samples["sft"]]
    before = trainer.reference_logprobs(sequences)
    losses = [trainer.step(samples).metrics["loss"] for _ in range(3)]
    assert losses[-1] < losses[0]
    trainer.save_weights(tmp_path / "version")
    check_adapter(base, tmp_path / "version", max_rank=16)
    halves = load_file(tmp_path / "version" / "adapter_model.safetensors")
    # Gradients come through every layer, whatever it is stored in.
    assert len(halves) == 2 * 7 * 2
    assert all(half.abs().max() > 0 for half in halves.values())
    assert trainer.reference_logprobs(sequences) == before

    merged = tmp_path / "merged"
    version = VersionFolder(name="1", base=base, weights=tmp_path / "version", adapter=True)
    export(version, merged)
    assert read_quantization(merged) is None
    assert {t.dtype for t in load_file(merged / "model.safetensors").values()} == {torch.bfloat16}
    plain = load_causal_lm(merged, torch.float32, CPU)
    tokens = torch.tensor([[5, 9, 20, 3, 7]])
    with torch.no_grad():
        off = plain(tokens).logits - trainer.model.module(tokens).logits
    assert off.abs().max() < 0.02


def test_the_gap_tells_whether_the_learner_has_the_base_that_answers(
    tiny_policy: Path, tmp_path: Path
) -> None:
    base = quantize(tiny_policy, tmp_path / "base", "awq")
    sequences = [sample.sequence for sample in SampleMaker().demonstrations(8)]
    sampled = [
        replace(sequence, generation_logprobs=row)
        for sequence, row in zip(
            sequences, PolicyModel(base).compute_logprobs(sequences), strict=True
        )
    ]
    same, plain = PolicyTrainer(base, SETTINGS), PolicyTrainer(tiny_policy, SETTINGS)
    of_same, of_plain = (mean_gap(sampled, t.logprobs(sampled)) for t in (same, plain))
    assert of_same is not None
    assert of_plain is not None
    assert of_same < 1e-5
    assert of_plain > 1e-3


def test_full_weights_of_a_quantized_base_are_refused(tiny_policy: Path, tmp_path: Path) -> None:
    base = quantize(tiny_policy, tmp_path / "base", "awq")
    with pytest.raises(SettingsError, match="only adapters can be trained and served: set the"):
        PolicyModel(base, kind=WeightsKind.FULL)
