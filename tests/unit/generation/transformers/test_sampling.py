"""Sampling of the transformers engine."""

import math
from collections import Counter

import pytest
import torch

from tuneloop.generation.transformers.sampling import choose, processed_logprobs
from tuneloop.rollouts import SamplingParameters

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])


def test_temperature_and_penalties_shape_the_distribution() -> None:
    sampling = SamplingParameters(
        temperature=0.5, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={3: 4.0}
    )
    expected = torch.log_softmax(torch.tensor([2.0 - 0.5 - 0.5, 1.0, 0.0, 3.0]) / 0.5, dim=-1)
    assert torch.allclose(processed_logprobs(LOGITS, sampling, Counter({0: 2})), expected)


def test_top_k_and_top_p_leave_the_likeliest_tokens() -> None:
    kept = processed_logprobs(LOGITS, SamplingParameters(temperature=1.0, top_k=2), {})
    assert kept.isfinite().tolist() == [True, True, False, False]
    assert kept.exp().sum().item() == pytest.approx(1.0)
    nucleus = processed_logprobs(LOGITS, SamplingParameters(temperature=1.0, top_p=0.7), {})
    assert nucleus.isfinite().tolist() == [True, True, False, False]
    single = processed_logprobs(LOGITS, SamplingParameters(temperature=1.0, top_p=1e-9), {})
    assert single.isfinite().tolist() == [True, False, False, False]


def test_greedy_takes_the_best_and_reports_it_at_temperature_one() -> None:
    logprobs = processed_logprobs(LOGITS, SamplingParameters(temperature=0.0, top_k=1), {})
    assert torch.allclose(logprobs, torch.log_softmax(LOGITS, dim=-1))
    assert choose(logprobs, 0.0, torch.Generator()) == 0


def test_sampling_frequencies_follow_the_logprobs() -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs = processed_logprobs(LOGITS, SamplingParameters(temperature=1.0), {})
    counts = Counter(choose(logprobs, 1.0, generator) for _ in range(4000))
    for token, logprob in enumerate(logprobs.tolist()):
        assert counts[token] / 4000 == pytest.approx(math.exp(logprob), abs=0.03)
