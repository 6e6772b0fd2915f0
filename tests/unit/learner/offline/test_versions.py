"""What comes out of a run is a plain model; versions are found by name, merged and compared."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.offline_data import rows_for, write_jsonl
from support.reward_parts import make_decoder
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from tuneloop.cli.app import app
from tuneloop.errors import FailedPrecondition, InvalidRequest, NotFound, WeightsRefused
from tuneloop.learner.commands.evaluate import spelled
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.offline.compare import EvaluateOptions, evaluate
from tuneloop.learner.offline.export import export
from tuneloop.learner.offline.train import TrainOptions, train
from tuneloop.learner.offline.versions import VersionFolder, Versions
from tuneloop.learner.stats.intervals import Estimate, mean_of, rate_of
from tuneloop.models.resolve import resolve
from tuneloop.models.reward_model import load as load_reward_model
from tuneloop.policies import WeightsKind
from tuneloop.reward.scorers.reward_model import base_scorer
from tuneloop.weights.filesystem import FilesystemStore
from tuneloop.weights.manifest import Manifest
from tuneloop.weights.shapes import base_model_sha256, check_full
from tuneloop.weights.signing import Signer, Verifier, write_key_pair

REWARD = ["support.offline_data:shorter"]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneloop.learner.offline.run.run.draw", lambda *a, **k: False)


def trained(algorithm: str, model: Path, folder: Path, **changes: Any) -> Path:
    given: dict[str, Any] = {
        "algorithm": algorithm,
        "model": str(model),
        "data": str(write_jsonl(folder / f"{algorithm}.jsonl", rows_for(algorithm))),
        "output": folder / f"{algorithm}-{model.name}",
        "assignments": ["threads=1", "learning_rate=0.01", "batch_size=6", "abilities=none"],
    }
    assert train(TrainOptions(**{**given, **changes})) is not None
    return Path(given["output"])


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([[5, 9, 20, 3, 7]]), use_cache=False).logits
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_a_lora_run_leaves_a_plain_model_and_its_adapter(family: str, tmp_path: Path) -> None:
    base = make_decoder(tmp_path / family, family)
    rows = [{"prompt": "yes please", "completion": "no thanks"}] * 4
    data = str(write_jsonl(tmp_path / "data.jsonl", rows))
    output = trained("sft", base, tmp_path, data=data)
    merged = AutoModelForCausalLM.from_pretrained(output).eval()
    adapted = PolicyModel(base)
    adapted.load_weights(output / "adapter")
    torch.testing.assert_close(logits_of(merged), logits_of(adapted.module), rtol=1e-4, atol=1e-5)
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    assert (logits_of(plain) - logits_of(merged)).abs().max() > 1e-3
    assert AutoTokenizer.from_pretrained(output)("yes").input_ids
    assert resolve(str(output), tmp_path) == output.resolve()
    check_full(base, output)
    exported = tmp_path / "exported"
    export(Versions(base=str(base)).find(str(output / "adapter")), exported)
    assert load_file(exported / "model.safetensors").keys()
    assert base_model_sha256(exported) == base_model_sha256(output)
    for name, tensor in load_file(exported / "model.safetensors").items():
        assert torch.equal(tensor, load_file(output / "model.safetensors")[name])
    card = (exported / "README.md").read_text()
    assert "Algorithms: `sft`." in card
    assert "| rows | 4 |" in card


def test_full_runs_and_reward_models_leave_plain_models(
    tiny_policy: Path, tiny_reward_model: Path, tmp_path: Path
) -> None:
    full = trained("sft", tiny_policy, tmp_path, kind=WeightsKind.FULL)
    assert not (full / "adapter").exists()
    assert logits_of(AutoModelForCausalLM.from_pretrained(full)).isfinite().all()
    check_full(tiny_policy, full)
    reward_model = trained("reward-model", tiny_reward_model, tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(reward_model)
    assert classifier.config.num_labels == 1
    assert load_reward_model(reward_model).trained


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_a_reward_model_may_be_trained_as_an_adapter(
    family: str, tiny_reward_model: Path, tmp_path: Path
) -> None:
    base = tiny_reward_model if family == "bert" else make_decoder(tmp_path / family, family)
    rows = write_jsonl(tmp_path / "pairs.jsonl", rows_for("reward-model"))
    given = ["--model", str(base), "--data", str(rows), "--output", str(tmp_path / "reward")]
    given += [part for s in ("threads=1", "lora_rank=2", "epochs=4") for part in ("--set", s)]
    done = CliRunner().invoke(app, ["train", "reward-model", "--lora", *given])
    assert done.exit_code == 0, done.output
    before = load_reward_model(base).module.state_dict()
    model = load_reward_model(tmp_path / "reward")
    assert model.trained
    after = model.module.state_dict()
    assert after.keys() == before.keys(), "merged: no tensor of the adapter is left"
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    head = {name for name in changed if name.startswith(("score.", "classifier."))}
    assert head
    assert len(changed - head) >= 8, "every linear layer is adapted"
    for name in changed - head:
        singular = torch.linalg.svdvals((after[name] - before[name]).double())
        assert singular[2] < 1e-3 * singular[0], f"{name} changed by more than rank 2"
    scorer = base_scorer(tmp_path / "reward", max_length=512, weight=1.0)
    assert scorer.informative
    short, long = model.score(["yes no"] * 2, ["the fox", "fox " * 6])
    assert short != long


def test_the_pipeline_is_three_runs(
    tiny_policy: Path, tiny_reward_model: Path, tmp_path: Path
) -> None:
    sft = trained("sft", tiny_policy, tmp_path)
    reward_model = trained("reward-model", tiny_reward_model, tmp_path)
    settings = ["threads=1", "batch_size=6", "max_completion_length=6", "abilities=none"]
    ppo = trained("ppo", sft, tmp_path, reward_model=str(reward_model), assignments=settings)
    summary = json.loads((ppo / "run.json").read_text())
    assert summary["rewards"] == ["reward_model=1"]
    assert summary["metrics"]["reward"]["last"] != 0
    assert logits_of(AutoModelForCausalLM.from_pretrained(ppo)).isfinite().all()


def test_a_backbone_is_no_reward_model(
    tiny_policy: Path, tiny_reward_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match="without a trained score head"):
        trained("ppo", tiny_policy, tmp_path, reward_model=str(tiny_reward_model))


@pytest.fixture
def service(tiny_policy: Path, tmp_path: Path) -> Path:
    """A data folder with one signed LoRA version."""
    root = tmp_path / "service"
    write_key_pair(root / "keys")
    (root / "model.json").write_text(json.dumps({"name": str(tiny_policy)}))
    model = PolicyModel(tiny_policy, seed=3)
    with torch.no_grad():
        for parameter in model.parameters().values():
            parameter.add_(0.02)
    model.save_weights(tmp_path / "adapter", base_model="tiny")
    keys = root / "keys"
    store = FilesystemStore(
        str(root / "weights"),
        verifier=Verifier.from_file(keys / "manifest_public.pem"),
        signer=Signer.from_file(keys / "manifest_private.pem"),
    )
    manifest = Manifest(
        policy="tuneloop",
        version=1,
        parent=0,
        kind=WeightsKind.LORA,
        base_model="tiny",
        base_model_sha256=base_model_sha256(tiny_policy),
        files=(),
        created_time=datetime(2026, 1, 1, tzinfo=UTC),
    )
    store.publish(tmp_path / "adapter", manifest)
    return root


def test_versions_of_a_service_are_verified_and_merged(
    service: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    versions = Versions(data_dir=service)
    export(versions.find("1"), tmp_path / "merged")
    served = PolicyModel(tiny_policy)
    served.load_weights(tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits_of(merged), logits_of(served.module), rtol=1e-4, atol=1e-5)
    assert versions.find("0").folder == tiny_policy.resolve()
    with pytest.raises(FailedPrecondition, match="not empty"):
        export(versions.find("1"), tmp_path / "merged")
    with pytest.raises(NotFound, match="no version 7"):
        versions.find("7")
    with pytest.raises(NotFound, match="--data-dir"):
        Versions().find("1")
    file = service / "weights" / "tuneloop" / "00000001" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(WeightsRefused, match="wrong SHA-256"):
        versions.find("1")


def test_an_adapter_that_does_not_fit_is_refused(tiny_policy: Path, tmp_path: Path) -> None:
    PolicyModel(tiny_policy).save_weights(tmp_path / "adapter", base_model="tiny")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, file)
    version = VersionFolder(name="a", base=tiny_policy, weights=tmp_path / "adapter", adapter=True)
    with pytest.raises(WeightsRefused):
        export(version, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_versions_are_compared(service: Path, tmp_path: Path) -> None:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", rows_for("ppo"))
    options = EvaluateOptions(
        a="0",
        b="1",
        prompts=str(prompts),
        versions=Versions(data_dir=service),
        rewards=REWARD,
        max_tokens=8,
        samples_per_prompt=2,
    )
    found = evaluate(options)
    assert found.prompts == 12
    kl_a, kl_b = found.figures["KL to base"]
    assert kl_a.value == pytest.approx(0.0, abs=1e-4)
    assert kl_b.value != pytest.approx(0.0, abs=1e-4)
    assert kl_b.low < kl_b.value < kl_b.high
    assert found.figures["reward"][0].value < 0
    assert found.win_rate is not None
    assert found.judged_by == "reward"
    assert evaluate(options) == found
    # The random numbers are those of the prompts, wherever their file stands.
    moved = write_jsonl(tmp_path / "another place.jsonl", rows_for("ppo"))
    assert evaluate(EvaluateOptions(**{**slots(options), "prompts": str(moved)})) == found
    same = evaluate(EvaluateOptions(**{**slots(options), "b": "0"}))
    assert same.win_rate is not None
    # The same random numbers: two times the same version is a tie in every completion.
    assert same.win_rate.value == 0.5
    assert same.figures["reward"][0] == same.figures["reward"][1]


def slots(options: EvaluateOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in EvaluateOptions.__slots__}


def test_what_does_not_fit_or_cannot_be_written_is_told(
    service: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", rows_for("ppo", 3))
    versions = Versions(data_dir=service)
    options = EvaluateOptions(a="0", b="1", prompts=str(prompts), versions=versions, max_tokens=600)
    with pytest.raises(InvalidRequest, match=r"line 1: .* the 512 that fit; .*lower --max-tokens"):
        evaluate(options)
    with pytest.raises(FailedPrecondition, match=r"prompts\.jsonl"):
        export(versions.find("0"), prompts / "model")


def test_rounding_is_not_shown() -> None:
    assert spelled(Estimate(value=-1.2e-7, low=-4e-7, high=0.00512)) == "0 (0 – 0.0051)"
    assert spelled(Estimate(value=0.6234, low=0.51, high=73.26)) == "0.623 (0.51 – 73.3)"


def test_evaluate_prints_a_table_or_json(service: Path, tmp_path: Path) -> None:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", rows_for("ppo", 3))
    common = ["evaluate", "0", "1", "--prompts", str(prompts), "--data-dir", str(service)]
    common += ["--reward", REWARD[0], "--max-tokens", "4"]
    done = CliRunner().invoke(app, common)
    assert done.exit_code == 0, done.output
    assert "KL to base" in done.output
    assert "B better, by reward" in done.output
    done = CliRunner().invoke(app, [*common, "--json"])
    document = json.loads(done.stdout)
    assert document["prompts"] == 3
    assert set(document["figures"]["reward"]["a"]) == {"value", "low", "high"}


def test_intervals_by_hand() -> None:
    # Wilson 1927 with 8 of 10: centre (0.8 + 0.19207) / 1.38415, half width 0.2270.
    rate = rate_of(8, 10)
    assert (rate.value, rate.low, rate.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert rate_of(0, 10).low == 0.0
    constant = mean_of([2.0, 2.0, 2.0])
    assert (constant.low, constant.value, constant.high) == (2.0, 2.0, 2.0)
    spread = mean_of([float(n) for n in range(100)])
    error = 28.866 / 10
    assert spread.low == pytest.approx(49.5 - 1.96 * error, abs=0.5)
    assert spread.high == pytest.approx(49.5 + 1.96 * error, abs=0.5)
