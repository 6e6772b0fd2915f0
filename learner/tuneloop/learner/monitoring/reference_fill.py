"""Fill in the reference log-probs of evaluated answers beside training."""

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.queue import ref_logprobs
from tuneloop.learner.ledger.reports import evaluations
from tuneloop.learner.trainer.base import Trainer


class ReferenceFill:
    """Computes the reference policy's log-probs that the KL of evaluated versions needs."""

    def __init__(self, database: Database, trainer: Trainer) -> None:
        self._database = database
        self._trainer = trainer
        self._seen = 0

    def fill_missing(self) -> None:
        """Compute them for the answers since the last call; runs in the trainer's thread."""
        count = evaluations.answers_recorded(self._database)
        if count == self._seen:
            return
        self._seen = count
        missing = evaluations.without_reference(self._database)
        if missing:
            computed = self._trainer.reference_logprobs(list(missing.values()))
            known = {k: v for k, v in zip(missing, computed, strict=True) if v}
            ref_logprobs.save_logprobs(self._database, known)
