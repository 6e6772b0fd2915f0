"""A comment teaches by what the model says once it has read it: against TRL, and by steps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.policy_samples import SampleMaker
from torch import Tensor
from transformers import AutoModelForCausalLM
from trl.experimental.sdft.loss_utils import compute_full_logit_self_distillation_loss

from tuneloop.learner.losses.means import merge
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.objectives.sdft import plan_sdft
from tuneloop.learner.samples import CommentedSample, TokenSequence
from tuneloop.learner.trainer.adaptive import AdaptiveState, StepControls
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.policies import WeightsKind

NO_CLIP = 1e9
SETTINGS = TrainerSettings(sdft_clip=NO_CLIP)


def make_model(folder: Path, kind: WeightsKind = WeightsKind.LORA) -> PolicyModel:
    """A policy that has learned something already."""
    model = PolicyModel(folder, kind=kind, lora_rank=4, lora_alpha=8)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters().values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def logits(module: Any, sequence: TokenSequence) -> Tensor:
    """Those that predict the completion, (1, C, V), of a plain pass."""
    ids = torch.tensor([[*sequence.prompt_token_ids, *sequence.completion_token_ids]])
    found: Tensor = module(ids).logits[:, len(sequence.prompt_token_ids) - 1 : -1]
    return found


def run(plan: Any) -> tuple[Tensor, dict[str, float]]:
    parts = [micro_loss() for micro_loss in plan.micro_losses]
    return torch.stack([loss for loss, _ in parts]).sum(), merge(m for _, m in parts)


@pytest.mark.parametrize("kind", WeightsKind)
@pytest.mark.parametrize("teacher", ["base", "live"])
def test_the_loss_and_its_gradient_are_trls(
    tiny_policy: Path, kind: WeightsKind, teacher: str
) -> None:
    samples = SampleMaker().comments(5)
    model, plain = make_model(tiny_policy, kind), AutoModelForCausalLM.from_pretrained(tiny_policy)
    by_answer = []
    for sample in samples:
        with torch.no_grad():
            read_by = model.module if teacher == "live" else plain
            of_teacher = logits(read_by, sample.hinted)
        by_token = compute_full_logit_self_distillation_loss(
            logits(model.module, sample.sequence), of_teacher, distillation_alpha=1.0
        )
        by_answer.append(by_token.mean())
    theirs = torch.stack(by_answer).mean()
    theirs.backward()  # type: ignore[no-untyped-call]
    expected = {name: p.grad for name, p in model.parameters().items()}
    model.module.zero_grad()
    settings = replace(SETTINGS, sdft_teacher=teacher, token_budget=24)  # type: ignore[arg-type]
    ours, metrics = run(plan_sdft(model, samples, settings))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-4)
    assert metrics["hint_divergence"] > 1e-3
    ours.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.parameters().items():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=2e-3, atol=1e-6)


def test_the_teacher_takes_no_gradient(tiny_policy: Path) -> None:
    """By finite differences: a live teacher that moved along would give another slope."""
    samples = SampleMaker().comments(3)
    model = make_model(tiny_policy)
    settings = replace(SETTINGS, sdft_teacher="live")
    loss, _ = run(plan_sdft(model, samples, settings))
    loss.backward()  # type: ignore[no-untyped-call]
    name, parameter = max(
        model.parameters().items(), key=lambda item: float(item[1].grad.abs().max())
    )
    slope = parameter.grad.norm()
    direction = parameter.grad / slope
    with torch.no_grad():
        of_teacher = [logits(model.module, s.hinted).log_softmax(-1) for s in samples]

        def loss_at(step: float) -> float:
            parameter.add_(step * direction)
            found = []
            for sample, teacher in zip(samples, of_teacher, strict=True):
                student = logits(model.module, sample.sequence).log_softmax(-1)
                found.append((student.exp() * (student - teacher)).sum(-1).mean())
            parameter.sub_(step * direction)
            return float(torch.stack(found).mean())

        assert (loss_at(2e-3) - loss_at(-2e-3)) / 4e-3 == pytest.approx(float(slope), rel=0.02), (
            name
        )


def test_a_hint_that_says_nothing_teaches_nothing(tiny_policy: Path) -> None:
    sample = SampleMaker().comments(1)[0]
    silent = replace(sample, hinted_prompt_token_ids=sample.sequence.prompt_token_ids)
    trainer = PolicyTrainer(tiny_policy, TrainerSettings(threads=1))
    metrics = trainer.step({"sdft": [silent]}).metrics
    assert metrics["sdft_loss"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["gradient_norm"] == pytest.approx(0.0, abs=1e-4)


def test_steps_bring_the_policy_to_what_it_would_have_said(tiny_policy: Path) -> None:
    """One step lowers the divergence to the hinted teacher, and some bring it near to nothing."""
    samples = SampleMaker().comments(4)
    trainer = PolicyTrainer(tiny_policy, TrainerSettings(threads=1, learning_rate=3e-3))
    found = [trainer.step({"sdft": samples}).metrics["hint_divergence"] for _ in range(20)]
    assert found[1] < found[0]
    assert found[-1] < 0.3 * found[0]


def test_one_token_counts_no_more_than_the_clip(tiny_policy: Path) -> None:
    samples = SampleMaker().comments(4)
    model = make_model(tiny_policy)
    whole, free = run(plan_sdft(model, samples, SETTINGS))
    clip = 0.5 * free["hint_divergence"]
    clipped, metrics = run(plan_sdft(model, samples, replace(SETTINGS, sdft_clip=clip)))
    assert metrics["hint_divergence"] == pytest.approx(free["hint_divergence"])
    assert 0 < metrics["hint_clipped"] <= 1
    assert float(clipped) <= clip < float(whole)


def test_past_the_kl_budget_comments_teach_nothing_and_their_answers_are_pulled(
    tiny_policy: Path,
) -> None:
    samples = SampleMaker().comments(4)
    model = make_model(tiny_policy)
    settings = replace(SETTINGS, kl_budget=0.01)

    def loss(controls: StepControls) -> float:
        return float(run(plan_sdft(model, samples, settings, controls))[0])

    assert loss(StepControls()) > 0
    assert loss(StepControls(kl_above=True)) == 0.0
    pulled = loss(StepControls(kl_above=True, kl_pull=2.0))
    assert pulled == pytest.approx(2 * loss(StepControls(kl_above=True, kl_pull=1.0)))
    assert pulled > 0
    above = AdaptiveState(kl_sum=0.02, kl_tokens=1.0)
    assert above.controls(settings).kl_above


def test_the_step_says_how_likely_each_commented_answer_was(tiny_policy: Path) -> None:
    [sample] = SampleMaker().comments(1)
    trainer = PolicyTrainer(tiny_policy, TrainerSettings(threads=1, kl_budget=1.0))
    [(before, logprob)] = trainer.step({"sdft": [sample]}).logprobs.values()
    assert before.completion_token_ids == sample.sequence.completion_token_ids
    [expected] = PolicyTrainer(tiny_policy, TrainerSettings(threads=1)).logprobs([before])
    assert logprob == pytest.approx(sum(expected), abs=1e-4)


def test_a_hint_that_does_not_fit_is_refused(tiny_policy: Path) -> None:
    [sample] = SampleMaker().comments(1)
    long = replace(sample, hinted_prompt_token_ids=(5,) * 600)
    assert isinstance(long, CommentedSample)
    trainer = PolicyTrainer(tiny_policy, TrainerSettings(threads=1))
    trainer.check("sdft", sample)
    with pytest.raises(Exception, match="more than the 512 that fit"):
        trainer.check("sdft", long)
