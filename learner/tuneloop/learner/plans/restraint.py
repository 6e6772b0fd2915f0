"""How far the policy is from the reference policy, and the pull back past the KL budget."""

from torch import Tensor

from tuneloop.learner.batching import SequenceBatch
from tuneloop.learner.losses.kl import pull_loss
from tuneloop.learner.losses.means import Mean, log_ratio_kl
from tuneloop.learner.plans.dials import Dials


def restrained(
    loss: Tensor,
    metrics: dict[str, Mean],
    *,
    batch: SequenceBatch,
    logprobs: Tensor,
    ref_logprobs: Tensor | None,
    dials: Dials,
    total_tokens: int,
) -> tuple[Tensor, dict[str, Mean]]:
    """Return a micro-batch's loss with the pull of `dials` added, its metrics with `kl` added.

    `logprobs` and `ref_logprobs` are (B, C); without the latter nothing is measured nor added.
    """
    if ref_logprobs is None:
        return loss, metrics
    measured = metrics | {"kl": log_ratio_kl(logprobs, ref_logprobs, batch.loss_mask)}
    if dials.kl_pull == 0:
        return loss, measured
    pull = pull_loss(
        policy_logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        loss_mask=batch.loss_mask,
        total_tokens=total_tokens,
    )
    return loss + dials.kl_pull * pull, measured
