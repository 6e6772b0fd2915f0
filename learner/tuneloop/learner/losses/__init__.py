"""Losses: pure functions of tensors, one algorithm to a module.

Every loss is a *sum* divided by a count of the whole batch that the caller passes in, so that the
losses of micro-batches add up to the loss of the batch, however it was cut. Metrics are `Mean`s for
the same reason.
"""
