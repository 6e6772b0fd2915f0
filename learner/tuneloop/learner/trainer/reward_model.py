"""One step of the reward model on every kind of feedback: thumbs, pairs, rankings, ratings."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from tuneloop.errors import InvalidRequest
from tuneloop.learner.losses.kto import RAREST, class_weights
from tuneloop.learner.losses.means import Mean, total_of
from tuneloop.learner.losses.reward_model import (
    bradley_terry_loss,
    ranking_loss,
    rating_loss,
    signal_loss,
    thumb_loss,
)
from tuneloop.learner.models.architecture import checkpoint_layers
from tuneloop.learner.models.lora import add_reward_adapter, merged_weights
from tuneloop.learner.models.memory import run_in_smaller_passes
from tuneloop.learner.models.reward import Encoded, RewardScores, head_name
from tuneloop.learner.models.world import ALONE
from tuneloop.learner.objectives.evidence import reward_evidence
from tuneloop.learner.objectives.reward_samples import (
    problem_of,
    silences,
    texts_of,
    weight_of,
)
from tuneloop.learner.samples import (
    REWARD_OBJECTIVES,
    LabelledText,
    PreferredText,
    RankedText,
    RatedText,
    Reference,
    RewardSample,
    SignalledText,
    TokenSequence,
)
from tuneloop.learner.trainer import checkpoint, checkpoint_shards
from tuneloop.learner.trainer.adaptive import ClassBalance
from tuneloop.learner.trainer.base import StepResult, TrainerState
from tuneloop.learner.trainer.checkpoint_shards import Saved
from tuneloop.learner.trainer.gradient_step import LossTerm, MicroLoss, accumulate_and_step
from tuneloop.learner.trainer.optimizer import Optimizer
from tuneloop.learner.trainer.settings import RewardTrainerSettings
from tuneloop.models.reward_model import RewardModel, load
from tuneloop.policies import WeightsKind

S = TypeVar("S", LabelledText, SignalledText, PreferredText, RankedText, RatedText)
Loss = tuple[Tensor, dict[str, Mean]]
THUMB_DECAY = 0.99
"""Weight of a thumb in the class balance once another has come."""
LossOf = Callable[[Tensor, Sequence[S], float], Loss]
"""From (B, K) scores of B samples with K texts each, and what all of the step's weigh."""


class RewardTrainer:
    """The `Trainer` of the reward model: learns to score completions from people's judgements."""

    needs_reference: frozenset[str] = frozenset()

    def __init__(self, model_folder: Path, settings: RewardTrainerSettings) -> None:
        """Load a classifier, or a backbone that gets a head of zeros, from `model_folder`.

        Raises `CorruptData` where the folder is neither.
        """
        self._settings = settings
        self._silence_weight = settings.silence_weight
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        frozen_in_half = settings.kind is WeightsKind.LORA and settings.device.startswith("cuda")
        dtype = torch.bfloat16 if frozen_in_half else torch.float32
        self._model: RewardModel = load(model_folder, settings.max_length, settings.device, dtype)
        module = self._model.module
        head = head_name(module)
        self._scores = RewardScores(self._model, packing=settings.packing)
        if settings.kind is WeightsKind.LORA:
            add_reward_adapter(
                module,
                head=head,
                rank=settings.lora_rank,
                alpha=settings.lora_alpha,
                seed=settings.seed,
            )
        wanted = settings.gradient_checkpointing
        if settings.device.startswith("cuda") if wanted is None else wanted:
            checkpoint_layers(module, needed=wanted is not None)
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        own = {name: p for name, p in trained.items() if name.startswith(f"{head}.")}
        backbone = {name: p for name, p in trained.items() if name not in own}
        self._optimizer = Optimizer(
            [(backbone, settings.learning_rate), (own, settings.head_learning_rate)],
            settings.optimizer,
        )
        self._thumbs = ClassBalance()

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps taken."""
        return self._optimizer.steps

    def check(self, objective: str, sample: RewardSample) -> None:
        """See `Trainer.check`."""
        self._encode(sample)

    def as_learned(self, sample: RewardSample) -> RewardSample:
        """Return the sample: its texts have no thought."""
        return sample

    def reference_logprobs(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        """Return () for each: a reward model gives texts no probability."""
        return [()] * len(sequences)

    logprobs = reference_logprobs

    def references(self, sequences: Sequence[TokenSequence]) -> list[Reference]:
        """Return nothing for each, as `reference_logprobs`."""
        return [Reference()] * len(sequences)

    def step(self, samples: Mapping[str, Sequence[RewardSample]]) -> StepResult:
        """Take one optimizer step on the samples of `reward_model`, of any kinds, and `signals`.

        Each kind is divided by the weights of its own samples, then they are summed. A further
        loss says that an answer is better than none (see `silences`). Thumbs up and thumbs down
        weigh half each over the stream of thumbs: users press one far more than the other, and the
        head must not learn that instead of what they like. Signals are a loss of their own, which
        weighs at most as much as those of the judgements beside them; without any there is no
        step. Metrics are of the model before the step: `accuracy` is on judgements it had not seen.

        Raises `InvalidRequest` if a sample cannot be learned from; `param` names it, and nothing
        has changed.
        """
        given, told = (samples.get(objective, ()) for objective in REWARD_OBJECTIVES)
        if not given:
            return StepResult(metrics={}, skipped=True, reason="no_samples")
        return run_in_smaller_passes(self, lambda: self._take_step(given, told))

    def _take_step(self, given: Sequence[RewardSample], told: Sequence[RewardSample]) -> StepResult:
        encoded = [(sample, self._encode(sample)) for sample in given]
        thumbs = [(s, e) for s, e in encoded if isinstance(s, LabelledText)]
        pairs = [(s, e) for s, e in encoded if isinstance(s, PreferredText)]
        rankings = [(s, e) for s, e in encoded if isinstance(s, RankedText)]
        ratings = [(s, e) for s, e in encoded if isinstance(s, RatedText)]
        silence = [(s, self._encode(s)) for s in silences(given)] if self._silence_weight else []
        signals = [(s, self._encode(s)) for s in told if isinstance(s, SignalledText)]
        balance = self._thumbs.updated([s for s, _ in thumbs], THUMB_DECAY)
        share = balance.desirable_share
        losses = {
            "thumb_loss": self._micro_losses(thumbs, partial(self._loss_of_thumbs, share)),
            "signal_loss": self._micro_losses(signals, partial(self._loss_of_signals, share)),
            "pair_loss": self._micro_losses(pairs, self._loss_of_pairs),
            "ranking_loss": self._micro_losses(rankings, self._loss_of_rankings),
            "rating_loss": self._micro_losses(ratings, self._loss_of_ratings),
            "silence_loss": self._micro_losses(silence, self._loss_of_silence),
        }
        beside = min(1.0, weight_of(told) / max(weight_of(given), 1e-9))
        weights = {"silence_loss": self._silence_weight, "signal_loss": beside}
        terms = [
            LossTerm(name=name, micro_losses=parts, weight=weights.get(name, 1.0))
            for name, parts in losses.items()
            if parts
        ]
        evidence = reward_evidence(given, self._settings.full_step)
        result = accumulate_and_step(self._optimizer, terms, evidence=evidence)
        if not result.skipped:
            self._thumbs = balance
        return result

    def save_weights(self, folder: Path) -> None:
        """Write a version's files: a plain `AutoModelForSequenceClassification` folder."""
        lora = self._settings.kind is WeightsKind.LORA
        self._model.save(folder, merged_weights(self._model.module) if lora else None)

    def stage_checkpoint(self, position: Mapping[str, Any]) -> Callable[[Path], None]:
        """See `Trainer.stage_checkpoint`."""
        return checkpoint.stage({"reward_model": self}, position)

    def load_checkpoint(self, folder: Path) -> None:
        """See `Trainer.load_checkpoint`."""
        checkpoint.load(folder).put_back("reward_model", self)

    def finite(self) -> bool:
        """See `Trainer.finite`."""
        return self._optimizer.finite()

    @property
    def token_budget(self) -> int:
        """See `Trainer.token_budget`."""
        return self._settings.token_budget

    def limit_tokens(self, token_budget: int) -> None:
        """Take passes of at most so many tokens from now on, and drop a failed step's gradients."""
        self._optimizer.zero_grad()
        self._settings = replace(self._settings, token_budget=token_budget)

    def state(self) -> TrainerState:
        """Return what a checkpoint keeps: weights, optimizer, schedule, balance of thumbs."""
        state = self._optimizer.state()
        return replace(state, scheduler={**state.scheduler, "thumbs": asdict(self._thumbs)})

    def load_state(self, state: TrainerState) -> None:
        """Restore a saved state; raises `CorruptData` if it is of another model."""
        thumbs = ClassBalance.of_state(state.scheduler.get("thumbs", {}))
        self._optimizer.load_state(state)
        self._thumbs = thumbs

    def stage_state(self) -> Callable[[Path], Saved]:
        """See `Checkpointed`."""
        return partial(checkpoint_shards.save, state=self.state(), world=ALONE)

    def read_state(self, folder: Path, saved: Saved) -> None:
        """See `Checkpointed`."""
        self.load_state(checkpoint_shards.load(folder, saved, self._optimizer.blank, ALONE))

    def _encode(self, sample: RewardSample) -> Encoded:
        """Return the sample's texts as token ids, best first."""
        if problem := problem_of(sample):
            raise _refused(sample, problem)
        completions = texts_of(sample)
        encodings = self._model.encode([sample.prompt] * len(completions), completions)
        if None in encodings:
            raise _refused(sample, f"more than the {self._model.max_length} tokens that fit")
        return tuple(encoding for encoding in encodings if encoding is not None)

    def _micro_losses(
        self, items: Sequence[tuple[S, Encoded]], loss_of: "LossOf[S]"
    ) -> list[MicroLoss]:
        """Cut a kind's samples; all texts of a sample stay in one micro-batch."""
        total = total_of(sample.weight for sample, _ in items)
        by_texts: defaultdict[int, list[tuple[S, Encoded]]] = defaultdict(list)
        for item in items:
            by_texts[len(item[1])].append(item)

        def micro_loss(group: Sequence[tuple[S, Encoded]]) -> MicroLoss:
            def run() -> Loss:
                scores = self._scores.of([encoded for _, encoded in group])
                return loss_of(scores, [sample for sample, _ in group], total)

            return run

        return [
            micro_loss(group)
            for alike in by_texts.values()
            for group in self._scores.cut(alike, self._settings.token_budget)
        ]

    def _loss_of_thumbs(
        self, share: float, scores: Tensor, thumbs: Sequence[LabelledText], total: float
    ) -> Loss:
        """Return the loss of thumbs of a stream of which `share` is up.

        Balanced over the stream: alone in a batch of one, a class has half of the weight however
        common it is, and nine thumbs up in ten would be learned as such.
        """
        labels = [sample.desirable for sample in thumbs]
        desirable = torch.tensor(labels, device=scores.device)
        return thumb_loss(
            scores=scores[:, 0],
            desirable=desirable,
            weights=_weights(thumbs, scores) * class_weights(desirable, share, limit=RAREST),
            total_weight=total,
        )

    def _loss_of_signals(
        self, share: float, scores: Tensor, signals: Sequence[SignalledText], total: float
    ) -> Loss:
        chances = scores.new_tensor([sample.chance for sample in signals])
        ups = class_weights(torch.ones_like(chances, dtype=torch.bool), share, limit=RAREST)
        downs = class_weights(torch.zeros_like(chances, dtype=torch.bool), share, limit=RAREST)
        return signal_loss(
            scores=scores[:, 0],
            chances=chances,
            weights=_weights(signals, scores),
            class_weights=(ups, downs),
            total_weight=total,
        )

    def _loss_of_pairs(self, scores: Tensor, pairs: Sequence[PreferredText], total: float) -> Loss:
        return bradley_terry_loss(
            chosen_scores=scores[:, 0],
            rejected_scores=scores[:, 1],
            margins=scores.new_tensor([sample.margin for sample in pairs]),
            weights=_weights(pairs, scores),
            total_weight=total,
        )

    def _loss_of_silence(
        self, scores: Tensor, pairs: Sequence[PreferredText], total: float
    ) -> Loss:
        loss, _ = self._loss_of_pairs(scores, pairs, total)
        return loss, {}  # the figures of pairs are of those that people compared

    def _loss_of_rankings(
        self, scores: Tensor, rankings: Sequence[RankedText], total: float
    ) -> Loss:
        return ranking_loss(
            scores=scores,
            weights=_weights(rankings, scores),
            total_weight=total,
            kind=self._settings.ranking_loss,
        )

    def _loss_of_ratings(self, scores: Tensor, ratings: Sequence[RatedText], total: float) -> Loss:
        return rating_loss(
            scores=scores[:, 0],
            ratings=scores.new_tensor([sample.rating for sample in ratings]),
            weights=_weights(ratings, scores),
            total_weight=total,
            kind=self._settings.rating_loss,
        )


def _weights(samples: Sequence[RewardSample], scores: Tensor) -> Tensor:
    return scores.new_tensor([sample.weight * sample.trust for sample in samples])


def _refused(sample: RewardSample, problem: str) -> InvalidRequest:
    return InvalidRequest(f"sample {sample.sample_id}: {problem}", param=sample.sample_id)
