"""One step of the reward model: Bradley–Terry on pairs, binary cross-entropy on thumbs."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tuneloop.errors import InvalidRequest
from tuneloop.learner.batching import micro_batches
from tuneloop.learner.descent import MicroLoss, Term, descend
from tuneloop.learner.losses.kto import balanced_weights
from tuneloop.learner.losses.means import Mean
from tuneloop.learner.losses.reward_model import bradley_terry_loss, thumb_loss
from tuneloop.learner.optimization import Optimization
from tuneloop.learner.samples import LabelledText, PreferredText, RewardSample
from tuneloop.learner.step_result import StepResult
from tuneloop.learner.trainer_settings import RewardTrainerSettings
from tuneloop.learner.trainer_state import TrainerState
from tuneloop.models.reward_model import Encoding, RewardModel, load

Encoded = tuple[Encoding, ...]
S = TypeVar("S", LabelledText, PreferredText)


class RewardTrainer:
    """Learns to score completions from thumbs and from pairs."""

    def __init__(self, model_folder: Path, settings: RewardTrainerSettings) -> None:
        """Load a classifier, or a backbone that gets a head of zeros, from `model_folder`."""
        self._settings = settings
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self._model: RewardModel = load(model_folder, settings.max_length, settings.device)
        head = _head_parameters(self._model.module)
        backbone = dict(self._model.module.named_parameters())
        backbone = {name: p for name, p in backbone.items() if name not in head}
        self._optimization = Optimization(
            [(backbone, settings.learning_rate), (head, settings.head_learning_rate)],
            settings.optimizer,
        )

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps taken."""
        return self._optimization.steps

    def check(self, sample: RewardSample) -> None:
        """Raise `InvalidRequest`, `param` the sample's id, if `step` could not learn from it."""
        self._encode(sample)

    def step(self, samples: Sequence[RewardSample]) -> StepResult:
        """Take one optimizer step on thumbs and pairs; either may be absent.

        Each kind is divided by its own number of samples, then they are summed. Thumbs up and
        thumbs down weigh half each: users press one far more than the other, and the head must
        not learn that instead of what they like. Metrics are of
        the model before the step: `accuracy` is on samples it had not seen.

        Raises:
            InvalidRequest: a sample cannot be learned from; nothing has changed. `param` names it.

        """
        encoded = [(sample, self._encode(sample)) for sample in samples]
        thumbs = balanced([(s, e) for s, e in encoded if isinstance(s, LabelledText)])
        pairs = [(s, e) for s, e in encoded if isinstance(s, PreferredText)]
        if not samples:
            return StepResult(metrics={}, skipped=True, reason="no_samples")
        thumb_losses = [self._thumb_loss(group, len(thumbs)) for group in self._cut(thumbs, rows=1)]
        pair_losses = [self._pair_loss(group, len(pairs)) for group in self._cut(pairs, rows=2)]
        given = {"thumb_loss": thumb_losses, "pair_loss": pair_losses}
        terms = [Term(name=name, micro_losses=parts) for name, parts in given.items() if parts]
        return descend(self._optimization, terms)

    def save_weights(self, folder: Path) -> None:
        """Write a version's files: a plain `AutoModelForSequenceClassification` folder."""
        self._model.save(folder)

    def state(self) -> TrainerState:
        """What a checkpoint keeps: weights, optimizer, schedule."""
        return self._optimization.state()

    def load_state(self, state: TrainerState) -> None:
        """Go on from a checkpoint; raises `CorruptData` if it is of another model."""
        self._optimization.load_state(state)

    def _encode(self, sample: RewardSample) -> Encoded:
        """The sample's texts as token ids: one, or chosen and rejected."""
        if not (math.isfinite(sample.weight) and sample.weight >= 0):
            raise _refused(sample, f"weight {sample.weight} is not a number from 0 up")
        match sample:
            case LabelledText(completion=completion):
                completions = [completion]
            case PreferredText(chosen=chosen, rejected=rejected, margin=margin):
                completions = [chosen, rejected]
                if not math.isfinite(margin):
                    raise _refused(sample, f"margin {margin} is not finite")
        encodings = self._model.encode([sample.prompt] * len(completions), completions)
        fitting = tuple(encoding for encoding in encodings if encoding is not None)
        if len(fitting) < len(encodings):
            raise _refused(sample, f"more than the {self._model.max_length} tokens that fit")
        return fitting

    def _scores(self, encodings: Sequence[Encoding]) -> Tensor:
        scores = self._model.forward(encodings)
        assert scores.shape == (len(encodings),)
        return scores

    def _thumb_loss(self, group: Sequence[tuple[LabelledText, Encoded]], total: int) -> MicroLoss:
        def run() -> tuple[Tensor, dict[str, Mean]]:
            scores = self._scores([encodings[0] for _, encodings in group])
            labels = [sample.desirable for sample, _ in group]
            loss, metrics = thumb_loss(
                scores=scores,
                desirable=torch.tensor(labels, device=scores.device),
                weights=scores.new_tensor([sample.weight for sample, _ in group]),
                total_samples=total,
            )
            return loss, metrics | {"accuracy": metrics["label_accuracy"]}

        return run

    def _pair_loss(self, group: Sequence[tuple[PreferredText, Encoded]], total: int) -> MicroLoss:
        def run() -> tuple[Tensor, dict[str, Mean]]:
            chosen = [encodings[0] for _, encodings in group]
            rejected = [encodings[1] for _, encodings in group]
            chosen_scores, rejected_scores = self._scores([*chosen, *rejected]).chunk(2)
            loss, metrics = bradley_terry_loss(
                chosen_scores=chosen_scores,
                rejected_scores=rejected_scores,
                margins=chosen_scores.new_tensor([sample.margin for sample, _ in group]),
                weights=chosen_scores.new_tensor([sample.weight for sample, _ in group]),
                total_pairs=total,
            )
            return loss, metrics | {"accuracy": metrics["pair_accuracy"]}

        return run

    def _cut(self, items: Sequence[tuple[S, Encoded]], rows: int) -> list[list[tuple[S, Encoded]]]:
        return micro_batches(
            items,
            length=lambda item: max(len(encoding["input_ids"]) for encoding in item[1]),
            rows=rows,
            token_budget=self._settings.token_budget,
        )


def balanced(thumbs: Sequence[tuple[LabelledText, Encoded]]) -> list[tuple[LabelledText, Encoded]]:
    """The thumbs with weights by which either verdict weighs half."""
    desirable = torch.tensor([sample.desirable for sample, _ in thumbs], dtype=torch.bool)
    weights = torch.tensor([sample.weight for sample, _ in thumbs], dtype=torch.float64)
    scaled = balanced_weights(desirable, weights).tolist()
    return [
        (dataclasses.replace(sample, weight=weight), encodings)
        for (sample, encodings), weight in zip(thumbs, scaled, strict=True)
    ]


def _refused(sample: RewardSample, problem: str) -> InvalidRequest:
    return InvalidRequest(f"sample {sample.sample_id}: {problem}", param=sample.sample_id)


def _head_parameters(module: Any) -> dict[str, nn.Parameter]:
    """The last linear layer with one output, by the names of the whole module."""
    heads = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and part.out_features == 1
    ]
    return dict(module.get_submodule(heads[-1]).named_parameters(prefix=heads[-1]))
