"""The extension of vLLM's worker in its own server with an adapter: our kernels for LoRA alone.

vLLM's own kernel class for LoRA on a CPU is several times slower than that, and would hide what
the stages after it cost. Sampling stays vLLM's.
"""

from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler
from vllm.v1.sample.sampler import Sampler

sample, gather = TopKTopPSampler.forward_cpu, Sampler.gather_logprobs

from tuneloop.generation.vllm import worker  # noqa: E402 - it replaces both methods

TopKTopPSampler.forward_cpu = sample
Sampler.gather_logprobs = staticmethod(gather)


class LoraExtension(worker.StagingExtension):
    """Imported for what importing it does."""
