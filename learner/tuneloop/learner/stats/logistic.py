"""Logistic regression with a Gaussian prior, by Newton's method."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

STEPS = 50
TOLERANCE = 1e-10
INTERCEPT_PRIOR = 1e-3
"""Precision of the prior of the intercept: it keeps one finite where all labels are the same."""


def fit_logistic(features: Array, labels: Array, weights: Array, *, precision: float) -> Array:
    """Return the intercept and the coefficients, (1 + K,), that are likeliest a posteriori.

    They maximize Σ wᵢ·log P(yᵢ | xᵢ) − precision/2·Σ cₖ², where P(y = 1 | x) = σ(c₀ + Σ cₖ·xₖ).
    `features` (N, K), `labels` (N,) 0 or 1, `weights` (N,) from 0 up. K may be 0. The objective is
    strictly concave, so that Newton's method (iteratively reweighted least squares) finds it;
    a step that overshoots is halved.
    """
    design = with_intercept(features)
    prior = np.full(design.shape[1], precision)
    prior[0] = INTERCEPT_PRIOR
    coefficients = np.zeros(design.shape[1])

    def objective(candidate: Array) -> float:
        scores = design @ candidate
        likelihood = weights @ (labels * scores - np.logaddexp(0.0, scores))
        return float(likelihood - prior @ candidate**2 / 2)

    best = objective(coefficients)
    for _ in range(STEPS):
        chances = sigmoid(design @ coefficients)
        gradient = design.T @ (weights * (labels - chances)) - prior * coefficients
        curvature = (design.T * (weights * chances * (1 - chances))) @ design + np.diag(prior)
        step = np.linalg.solve(curvature, gradient)
        while (reached := objective(coefficients + step)) < best and np.abs(step).max() > TOLERANCE:
            step = step / 2
        coefficients, gained, best = coefficients + step, reached - best, reached
        if gained < TOLERANCE:
            break
    return coefficients


def predict(coefficients: Array, features: Array) -> Array:
    """Return P(y = 1) of each row, (N,)."""
    return sigmoid(with_intercept(features) @ coefficients)


def with_intercept(features: Array) -> Array:
    """Return the rows with a column of ones before the others, (N, 1 + K)."""
    return np.column_stack([np.ones(len(features)), features])


def sigmoid(scores: Array) -> Array:
    """Return σ of each score, without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -scores)), dtype=np.float64)
