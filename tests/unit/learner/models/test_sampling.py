"""Sampling in process: the model's log-probs, the seed's choice, whatever the batch."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.offline_data import shorter

from tuneloop.errors import FailedPrecondition, InvalidRequest
from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.data.prompt_rows import PromptRow
from tuneloop.learner.data.tokenize import PromptTokens
from tuneloop.learner.models.decoding.greedy import GreedyDecoder, Likeliest, greedy_answers
from tuneloop.learner.models.decoding.sampling import InverseSampling, Sampler, uniforms
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.offline.sources.base import RowOrder
from tuneloop.learner.offline.sources.rest import RestPlan, kept_above, quantile
from tuneloop.learner.offline.sources.rewards import RewardInput, Rewards, load_rewards
from tuneloop.learner.samples import GreedyPrompt, SampledAnswer, TokenSequence
from tuneloop.reward.scorers.functions import FunctionScorer

PROMPTS = ["hello world", "the quick brown fox jumps", "yes", "no please thanks"]


@pytest.fixture(scope="module")
def policy(tiny_policy: Path) -> PolicyModel:
    return PolicyModel(tiny_policy)


@pytest.fixture(scope="module")
def tokenization(tiny_policy: Path) -> Tokenization:
    return Tokenization(tiny_policy)


def make_sampler(tokenization: Tokenization, batch_size: int = 4, max_tokens: int = 10) -> Sampler:
    return Sampler(tokenization, temperature=0.7, max_tokens=max_tokens, batch_size=batch_size)


def test_logprobs_are_the_models_own(policy: PolicyModel, tokenization: Tokenization) -> None:
    prompts = [tokenization.tokenizer(text).input_ids for text in PROMPTS]
    sampled = make_sampler(tokenization).sample(policy.module, prompts, PROMPTS)
    for prompt, completion in zip(prompts, sampled, strict=True):
        ids = torch.tensor([[*prompt, *completion.token_ids]])
        with torch.no_grad():
            logits = policy.module(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        logprobs = torch.log_softmax(logits / 0.7, -1)
        expected = logprobs.gather(-1, ids[0, len(prompt) :].unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-5)


def test_batches_change_nothing(policy: PolicyModel, tokenization: Tokenization) -> None:
    prompts = [tokenization.tokenizer(text).input_ids for text in PROMPTS]
    together = make_sampler(tokenization).sample(policy.module, prompts, PROMPTS)
    apart = make_sampler(tokenization, batch_size=1).sample(policy.module, prompts, PROMPTS)
    assert [c.token_ids for c in together] == [c.token_ids for c in apart]
    other = make_sampler(tokenization).sample(policy.module, prompts, ["another"] * 4)
    assert [c.token_ids for c in together] != [c.token_ids for c in other]


def test_sampling_leaves_torchs_generator_alone(
    policy: PolicyModel, tokenization: Tokenization
) -> None:
    before = torch.get_rng_state()
    make_sampler(tokenization).sample(policy.module, [[5, 6]], ["seed"])
    assert torch.equal(before, torch.get_rng_state())


def test_a_completion_ends_with_its_end_token(
    policy: PolicyModel, tokenization: Tokenization
) -> None:
    [end] = tokenization.stop_token_ids
    sampler = make_sampler(tokenization, max_tokens=400, batch_size=16)
    sampled = sampler.sample(policy.module, [[5, 6, 7]] * 16, [str(i) for i in range(16)])
    assert {completion.stopped for completion in sampled} == {True, False}
    for completion in sampled:
        assert len(completion.token_ids) == len(completion.logprobs)
        assert (completion.token_ids[-1] == end) == completion.stopped
        assert end not in completion.token_ids[:-1]
        assert "<|im_end|>" not in completion.text


def test_tokens_come_with_their_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    draws = 20_000
    choose = InverseSampling(uniforms([str(i) for i in range(draws)], 1), temperature=1.0)
    choose(torch.empty(0), probabilities.log().expand(draws, 4))
    tokens, logprobs = choose.result()
    counts = Counter(token for [token] in tokens)
    for token, probability in enumerate(probabilities.tolist()):
        # Four standard deviations of a binomial count.
        margin = 4 * (draws * probability * (1 - probability)) ** 0.5
        assert abs(counts[token] - draws * probability) <= margin
    assert logprobs[0][0] == pytest.approx(float(probabilities[tokens[0][0]].log()))


def test_weights_that_diverged_are_told() -> None:
    choose = InverseSampling(uniforms(["a"], 1), temperature=1.0)
    choose(torch.empty(0), torch.full((1, 4), float("nan")))
    with pytest.raises(FailedPrecondition, match="not a number"):
        choose.result()


def test_every_epoch_takes_every_row_once_in_an_order_of_its_own() -> None:
    order = RowOrder(count=10, batch_size=4, epochs=2, seed="s")
    assert order.steps == 6
    epochs = [
        [row for step in steps for row in order.rows(step)] for steps in ((0, 1, 2), (3, 4, 5))
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]
    assert order.rows(4) == RowOrder(count=10, batch_size=4, epochs=2, seed="s").rows(4)


def answers(count: int) -> list[RewardInput]:
    asked = PromptTokens(text="q", messages=(), rendered="q", token_ids=(1,))
    return [
        RewardInput(
            row=PromptRow(place=f"p.jsonl, line {i + 1}", asked=asked, columns={"n": i}),
            completion="x" * i,
            finish_reason="stop",
        )
        for i in range(count)
    ]


def rewards_of(function: Any, weight: float = 1.0) -> Rewards:
    return Rewards([FunctionScorer(name="f", weight=weight, function=function)])


def test_rewards_are_weighted_sums() -> None:
    loaded = load_rewards(["support.offline_data:shorter", "support.offline_data:shorter=-3"], None)
    assert loaded.score(answers(3)) == pytest.approx([0.0, 0.2, 0.4])
    assert shorter([], []) == []


def test_what_a_function_cannot_score_stays_unscored() -> None:
    assert rewards_of(lambda **c: [None, 1.0]).score(answers(2)) == [None, 1.0]


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda completions, n, **c: [1 / (2 - i) for i in n], "raised ZeroDivisionError"),
        (lambda completions, n, **c: [float("nan") if i == 2 else 0.0 for i in n], "returned nan"),
        (lambda completions, n, **c: [0.0] * sum(i != 2 for i in n), "returned 0 scores for 1"),
        (lambda completions, n, **c: ["x" if i == 2 else 0.0 for i in n], "returned 'x'"),
    ],
)
def test_a_failing_reward_names_the_row(function: Any, problem: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        rewards_of(function).score(answers(4))
    assert "p.jsonl, line 3: reward f" in caught.value.message
    assert problem in caught.value.message


def test_the_bar_of_rest_rises() -> None:
    plan = RestPlan(
        grow_steps=1,
        improve_steps=3,
        threshold_start=0.5,
        threshold_end=0.9,
        epochs=1,
        batch_size=2,
        seed="s",
    )
    rewards = [0.1 * i for i in range(10)]
    bars = [quantile(rewards, plan.quantile(i)) for i in range(3)]
    assert bars == pytest.approx([0.4, 0.6, 0.8])
    assert [kept_above(rewards, bar) for bar in bars] == [[5, 6, 7, 8, 9], [7, 8, 9], [9]]
    assert kept_above([1.0, 1.0], quantile([1.0, 1.0], 0.9)) == [0, 1]


class Counted:
    """A policy that notes how many answers it generates and how many drafts it checks."""

    def __init__(self, policy: PolicyModel) -> None:
        self.policy = policy
        self.generated = self.checked = 0

    @property
    def module(self) -> Any:
        self.generated += 1
        return self.policy.module

    def compute_likeliest(
        self, sequences: Sequence[TokenSequence], *, divergences: bool = False
    ) -> list[Likeliest]:
        self.checked += len(sequences)
        return self.policy.compute_likeliest(sequences, divergences=divergences)


def moved(policy: PolicyModel, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def diverging(policy: PolicyModel, answer: SampledAnswer, prompt: tuple[int, ...]) -> list[float]:
    """KL to the reference before each token, by plain passes over the whole answer."""
    ids = torch.tensor([[*prompt, *answer.token_ids]])
    before = slice(len(prompt) - 1, -1)
    with torch.no_grad():
        ours = torch.log_softmax(policy.module(ids).logits[0, before], -1)
        with policy.reference_module() as module:
            theirs = torch.log_softmax(module(ids).logits[0, before], -1)
    found: list[float] = (ours.exp() * (ours - theirs)).sum(-1).tolist()
    return found


def test_checked_drafts_are_the_greedy_answers_however_far_the_weights_moved(
    tiny_policy: Path, tokenization: Tokenization
) -> None:
    policy = PolicyModel(tiny_policy, lora_rank=4, lora_alpha=8)
    counted = Counted(policy)
    decoder = GreedyDecoder(counted, tokenization)
    prompts = [tuple(tokenization.tokenizer(text).input_ids) for text in PROMPTS]
    changed = 0
    before: list[SampledAnswer] = []
    for seed, scale in enumerate((0.0, 0.0, 0.02, 0.05, 0.1, 0.3)):
        moved(policy, scale, seed)
        for max_tokens in (12, 7, 16):
            found = decoder.answers([GreedyPrompt(p, max_tokens, True) for p in prompts])
            plain = greedy_answers(policy.module, tokenization, prompts, max_tokens)
            assert [one.token_ids for one in found] == [one.token_ids for one in plain]
            assert [one.text for one in found] == [one.text for one in plain]
            for one, other, prompt in zip(found, plain, prompts, strict=True):
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
                assert one.divergences == pytest.approx(diverging(policy, one, prompt), abs=1e-5)
        changed += sum(
            one.token_ids != other.token_ids for one, other in zip(found, before, strict=False)
        )
        before = found
    assert changed > 0
    assert counted.checked > 0


def test_answers_that_stay_are_not_generated_again(
    tiny_policy: Path, tokenization: Tokenization
) -> None:
    counted = Counted(PolicyModel(tiny_policy))
    decoder = GreedyDecoder(counted, tokenization)
    prompts = [tuple(tokenization.tokenizer(text).input_ids) for text in PROMPTS]
    asked = [GreedyPrompt(prompt, 8) for prompt in prompts]
    first = decoder.answers(asked)
    assert (counted.generated, counted.checked) == (1, 0)
    again = decoder.answers(asked)
    assert (counted.generated, counted.checked) == (1, len(prompts))
    assert [one.token_ids for one in again] == [one.token_ids for one in first]


def test_prompts_of_different_lengths_are_answered_at_once(
    tiny_policy: Path, tokenization: Tokenization
) -> None:
    """Those that are measured, too; what ends early waits for the others and is cut."""
    policy = PolicyModel(tiny_policy, lora_rank=4, lora_alpha=8)
    counted = Counted(policy)
    decoder = GreedyDecoder(counted, tokenization)
    prompts = [tuple(tokenization.tokenizer(text).input_ids) for text in PROMPTS]
    limits = [3 + 4 * n for n in range(len(prompts))]
    asked = [
        GreedyPrompt(prompt, limit, n % 2 == 1)
        for n, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
    ]
    for seed, scale in enumerate((0.0, 0.1, 0.1)):
        moved(policy, scale, seed)
        generated = counted.generated
        found = decoder.answers(asked)
        assert counted.generated <= generated + 1
        for one, prompt in zip(found, asked, strict=True):
            (alone,) = greedy_answers(
                policy.module, tokenization, [prompt.token_ids], prompt.max_tokens
            )
            assert one.token_ids == alone.token_ids
            expected = diverging(policy, one, prompt.token_ids) if prompt.is_measured else ()
            assert one.divergences == pytest.approx(expected, abs=1e-5)
    assert counted.generated > 1
