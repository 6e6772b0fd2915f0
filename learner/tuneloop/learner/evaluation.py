"""What the eval prompts say of the versions, for people, metrics and the wire."""

from tuneloop.learner import metrics
from tuneloop.learner.ledger import evaluations, references
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.evaluations import Evaluation
from tuneloop.learner.trainer import Trainer
from tuneloop.v1 import learner_pb2


class Referring:
    """Computes what the KL of evaluated versions lacks: the reference policy's log-probs."""

    def __init__(self, database: Database, trainer: Trainer) -> None:
        self._database = database
        self._trainer = trainer
        self._seen = 0

    def go_on(self) -> None:
        """Compute for the answers that came since the last call; in the trainer's thread."""
        count = evaluations.answers_recorded(self._database)
        if count == self._seen:
            return
        self._seen = count
        missing = evaluations.without_reference(self._database)
        if missing:
            computed = self._trainer.reference_logprobs(list(missing.values()))
            known = {k: v for k, v in zip(missing, computed, strict=True) if v}
            references.save(self._database, known)


def show(database: Database) -> None:
    """The newest evaluation in the gauges."""
    found = newest(database)
    if found is None:
        return
    metrics.eval_version.set(found.policy_version)
    metrics.eval_length.set(found.length.value)
    if found.reward is not None:
        metrics.eval_reward.set(found.reward.value)
    if found.kl is not None:
        metrics.eval_kl.set(found.kl)


def newest(database: Database) -> Evaluation | None:
    """The newest version's evaluation."""
    version = evaluations.newest_evaluated(database)
    return None if version is None else evaluations.evaluate(database, version)


def to_proto(found: Evaluation | None) -> learner_pb2.Evaluation | None:
    """An evaluation on the wire; None stays absent."""
    if found is None:
        return None
    return learner_pb2.Evaluation(
        policy_version=found.policy_version,
        prompts=found.prompts,
        scored=found.scored,
        mean_reward=None if found.reward is None else found.reward.value,
        reward_margin=None if found.reward is None else found.reward.margin,
        mean_length=found.length.value,
        length_margin=found.length.margin,
        kl=found.kl,
        reward_model_version=found.reward_model_version,
    )
