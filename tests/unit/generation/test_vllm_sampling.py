"""Sampling by inversion: the same distribution as vLLM's own, with one random number a row."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize(
    ("share", "token"), [(0.0, 1), (0.249, 1), (0.25, 3), (0.749, 3), (0.75, 4), (0.999, 4)]
)
def test_a_token_is_chosen_by_its_part_of_the_sum(share: float, token: int) -> None:
    from tuneloop.generation.vllm.sampling import sample_by_inversion

    # A quarter, a half, a quarter; what top-k and top-p took away stays away.
    probs = torch.tensor([[0.0, 0.5, 0.0, 1.0, 0.5, 0.0]])
    uniforms = torch.tensor([share], dtype=torch.float64)
    assert sample_by_inversion(probs, uniforms).tolist() == [token]


@pytest.mark.parametrize("vocab", [255, 256, 257, 1024, 1000])
def test_blocks_and_what_is_left_of_them_are_all_reached(vocab: int) -> None:
    from tuneloop.generation.vllm.sampling import sample_by_inversion

    probs = torch.full((vocab, vocab), 1 / vocab)
    middles = (torch.arange(vocab, dtype=torch.float64) + 0.5) / vocab
    assert sample_by_inversion(probs, middles).tolist() == list(range(vocab))


def test_the_largest_share_gets_the_last_token_that_has_any() -> None:
    from tuneloop.generation.vllm.sampling import sample_by_inversion

    probs = torch.zeros(1, 1000)
    probs[0, [3, 270]] = torch.tensor([1 / 3, 1e-9])
    largest = torch.tensor([1.0 - 2.0**-53], dtype=torch.float64)
    assert sample_by_inversion(probs, largest).tolist() == [270]


def test_small_probabilities_are_not_lost_behind_large_ones() -> None:
    from tuneloop.generation.vllm.sampling import sample_by_inversion

    # Added up in float32, 20,000 times 1e-9 behind 1 are nothing.
    probs = torch.full((1, 20_001), 1e-9)
    probs[0, 0] = 1.0
    half = torch.tensor([1.0 / (1 + 2e-5) + 1e-5], dtype=torch.float64)
    assert sample_by_inversion(probs, half).item() == pytest.approx(10_000, abs=20)


def test_rows_that_are_not_numbers_do_not_end_the_engine() -> None:
    from tuneloop.generation.vllm.sampling import sample_by_inversion

    rows = torch.stack([torch.full((300,), float("nan")), torch.zeros(300), torch.ones(300)])
    found = sample_by_inversion(rows, torch.full((3,), 0.5, dtype=torch.float64))
    assert all(0 <= token < 300 for token in found.tolist())
    assert found[2] == 150


def test_frequencies_are_those_of_the_softmax_and_seeds_are_kept() -> None:
    from tuneloop.generation.vllm.sampling import RewindableGenerator, forward_cpu

    def seeded() -> dict[int, RewindableGenerator]:
        generator = RewindableGenerator()
        generator.manual_seed(1)
        return {7: generator}

    torch.manual_seed(0)
    logits = torch.randn(300) * 2
    rows = logits.expand(20_000, 300).clone()
    sampler = SimpleNamespace(logprobs_mode="processed_logprobs")
    tokens, logprobs = forward_cpu(sampler, rows, seeded(), None, None)
    assert logprobs is not None
    assert torch.allclose(logprobs[5], logits.log_softmax(-1))
    expected = logits.softmax(-1)
    seen = torch.bincount(tokens, minlength=300) / len(rows)
    # Five standard deviations.
    assert (seen - expected).abs().le(5 * (expected / len(rows)).sqrt() + 1e-4).all()
    again, _ = forward_cpu(sampler, rows[:8], seeded(), None, None)
    assert again[7] == tokens[7]


def test_the_last_number_of_a_seed_can_be_taken_back() -> None:
    from tuneloop.generation.vllm.sampling import RewindableGenerator

    generator = RewindableGenerator()
    generator.manual_seed(5)
    first, second = generator.draw(), generator.draw()
    # As vLLM does it.
    generator.set_offset(generator.get_offset() - 4)
    assert generator.draw() == second
    assert second != first


def test_vllms_worker_samples_so() -> None:
    from vllm.platforms import current_platform
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    from tuneloop.generation.vllm import worker
    from tuneloop.generation.vllm.sampling import forward_cpu

    if not current_platform.is_cpu():
        pytest.skip("only on a CPU")
    assert worker.replace_sampler
    assert TopKTopPSampler("processed_logprobs").forward.__func__ is forward_cpu


def test_top_k_leaves_the_others_out() -> None:
    from tuneloop.generation.vllm.sampling import forward_cpu

    torch.manual_seed(0)
    rows = torch.randn(1, 300).expand(500, 300).clone()
    best = set(rows[0].topk(3).indices.tolist())
    sampler = SimpleNamespace(logprobs_mode="raw_logprobs")
    tokens, kept = forward_cpu(sampler, rows, {}, torch.full((500,), 3), None)
    assert set(tokens.tolist()) == best
    assert kept is None


@pytest.mark.parametrize("count", [0, 2])
def test_log_probs_are_gathered_as_by_vllm(count: int) -> None:
    from tuneloop.generation.vllm.sampling import gather_logprobs, gather_with_ranks

    torch.manual_seed(0)
    logprobs = torch.randn(3, 300).log_softmax(-1)
    tokens = torch.tensor([4, 0, 299])
    found, theirs = (
        gather(logprobs, count, tokens) for gather in (gather_logprobs, gather_with_ranks)
    )
    assert found.logprob_token_ids.dtype == theirs.logprob_token_ids.dtype
    assert torch.equal(found.logprob_token_ids, theirs.logprob_token_ids)
    assert torch.equal(found.logprobs, theirs.logprobs)
    assert found.selected_token_ranks.shape == theirs.selected_token_ranks.shape
    assert found.selected_token_ranks.dtype == theirs.selected_token_ranks.dtype
