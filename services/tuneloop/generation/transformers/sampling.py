"""Samples the next token from logits, in the same way as vLLM's sampler.

Order: logit bias, penalties (presence and frequency, over the completion only), temperature, top-k,
top-p. The log-probs reported are those of the distribution that was sampled from; a greedy request
(temperature 0) reports them at temperature 1.
"""

from collections.abc import Mapping

import torch

from tuneloop.rollouts import SamplingParameters


def processed_logprobs(
    logits: torch.Tensor, sampling: SamplingParameters, completion_counts: Mapping[int, int]
) -> torch.Tensor:
    """Return the log-probs to sample from, float32 [vocab], for logits [vocab].

    `completion_counts` says how often each token id occurs in the completion so far.
    """
    logits = logits.float().clone()
    for token, bias in sampling.logit_bias.items():
        logits[token] += bias
    for token, count in completion_counts.items():
        logits[token] -= sampling.frequency_penalty * count + sampling.presence_penalty
    if sampling.temperature == 0:
        return torch.log_softmax(logits, dim=-1)
    logits /= sampling.temperature
    if 0 < sampling.top_k < logits.shape[0]:
        threshold = torch.topk(logits, sampling.top_k).values[-1]
        logits = logits.masked_fill(logits < threshold, float("-inf"))
    if sampling.top_p < 1:
        logits = keep_nucleus(logits, sampling.top_p)
    return torch.log_softmax(logits, dim=-1)


def keep_nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Mask all but the smallest set of most likely tokens whose mass reaches `top_p`."""
    ordered, order = torch.sort(logits, descending=True)
    mass_before = torch.cumsum(torch.softmax(ordered, dim=-1), dim=-1) - torch.softmax(
        ordered, dim=-1
    )
    dropped = order[mass_before >= top_p]
    dropped = dropped[dropped != order[0]]
    return logits.index_fill(0, dropped, float("-inf"))


def choose(logprobs: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    """Sample a token id from log-probs [vocab]; at temperature 0, the most likely one."""
    if temperature == 0:
        return int(logprobs.argmax())
    return int(torch.multinomial(logprobs.exp(), 1, generator=generator))
