"""Answers with thoughts, from the ledger into steps of a real policy: which tokens are learned."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import select
from support.learner_events import make_edit, make_feedback, make_rollout, make_score, make_thumb
from support.learner_parts import Parts
from support.tiny_models import make_tokenizer
from torch import Tensor

from tuneloop.feedback import Comparison
from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.batching.batcher import PolicyBatcher
from tuneloop.learner.data.fields import Fields
from tuneloop.learner.data.policy_rows import sample_maker
from tuneloop.learner.data.table import Table
from tuneloop.learner.data.tokenize import EditTokenizer, PromptTokenizer, completion_text
from tuneloop.learner.ledger.accounting import downstream
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.events.sample_rules import SampleRules
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.schema import samples
from tuneloop.learner.objectives.base import Plan
from tuneloop.learner.objectives.dpo import plan_dpo
from tuneloop.learner.objectives.grpo import plan_grpo
from tuneloop.learner.objectives.kto import plan_kto
from tuneloop.learner.samples import (
    Objective,
    PairSample,
    ScoredGroup,
    ScoredSample,
    ThumbSample,
    TokenSequence,
)
from tuneloop.learner.samples.learned_tokens import as_learned
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.rollouts import ChatMessage, Prompt, Rollout

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' }}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{# the model thinks between <think> and </think> #}"
)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of the shape of Qwen3, with the tokens that it thinks between."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("thinker")
    make_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tags = ("<think>", "</think>")
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=3,
        tie_word_embeddings=True,
        dtype="float32",
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def make_parts(folder: Path, policy: Path, **options: Any) -> Parts:
    given = {
        "warmup_steps": 0,
        "learning_rate": 1e-3,
        "threads": 1,
        "trainer_settings": {"anchor_weight": 0, "scored_rate": 1.0},
        **options,
    }
    parts = Parts(folder=folder, options=given)
    parts.training_run.trainer = PolicyTrainer(policy, parts.settings.trainer(), base_model="tiny")
    parts.batches = PolicyBatcher(
        parts.database, parts.settings, edit_tokens=EditTokenizer(policy), clock=parts.clock
    )
    return parts


def thought_about(
    policy: Path, completion_id: str, answer: str, *, thought: str = "a river", **kwargs: Any
) -> Rollout:
    """An answer to a user after a thought, as the policy samples it."""
    tokenization = Tokenization(policy)
    asked = Prompt(messages=(ChatMessage(role="user", content="Hi"),))
    prompt = tokenization.tokenize(asked).token_ids
    end = f"</think>\n\n{answer}<|im_end|>" if answer else ""
    text = f"<think>\n{thought}\n{end}"
    completion = tokenization.tokenizer(text, add_special_tokens=False).input_ids
    return make_rollout(
        completion_id,
        prompt=prompt,
        completion=completion,
        text=answer,
        temperature=1.0,
        thought=tokenization.read_completion(completion, prompt).reasoning_tokens,
        **kwargs,
    )


def refused(parts: Parts) -> dict[str, str]:
    with parts.database.read() as connection:
        query = select(samples.c.objective, samples.c.note).where(samples.c.state == "refused")
        return {row.objective: row.note for row in connection.execute(query)}


def test_a_thought_ends_where_the_answer_begins(thinker: Path) -> None:
    tokenization = Tokenization(thinker)
    rollout = thought_about(thinker, "c", "hello world")
    ids = rollout.completion_token_ids
    thought, answer = ids[: rollout.reasoning_tokens], ids[rollout.reasoning_tokens :]
    assert tokenization.decode(thought) == "<think>\na river\n</think>\n\n"
    assert tokenization.decode(answer) == "hello world"
    read = tokenization.read_completion(ids, rollout.prompt_token_ids)
    assert (read.reasoning, read.answer) == ("a river", "hello world")
    cut = thought_about(thinker, "c", "")
    assert cut.reasoning_tokens == len(cut.completion_token_ids)
    plain = tokenization.encode_text("hello world")
    read = tokenization.read_completion(plain, rollout.prompt_token_ids)
    assert (read.reasoning_tokens, read.answer) == (0, "hello world")
    # Some templates begin the thought: then no completion does.
    begun = (*rollout.prompt_token_ids, *thought[:2])
    read = tokenization.read_completion(ids[2:], begun)
    assert read.reasoning_tokens == rollout.reasoning_tokens - 2


async def test_judgements_teach_the_answer_and_an_edit_keeps_the_thought(
    tmp_path: Path, thinker: Path
) -> None:
    parts = make_parts(tmp_path, thinker, batch_size=5, min_batch_size=5)
    answers = {f"c{n}": thought_about(thinker, f"c{n}", f"hello {n}") for n in range(4)}
    recorder.record_rollouts(parts.database, list(answers.values()), parts.clock())
    thumbs = [make_thumb(f"t{n}", f"c{n}", n % 2 == 0, user=f"u{n}") for n in range(3)]
    edit = make_edit("e", "c3", "hello world", user="u3")
    given = [(event, number) for number, event in enumerate([*thumbs, edit])]
    recorder.record_feedback(parts.database, given, parts.clock())
    tokens = EditTokenizer(thinker)
    [pair], _ = ready.take_samples(parts.database, "dpo", 9, edit_tokens=tokens)
    thought = answers["c3"].reasoning_tokens
    chosen, original = pair.chosen.completion_token_ids, pair.rejected.completion_token_ids
    assert chosen[:thought] == original[:thought]
    assert original == answers["c3"].completion_token_ids
    tokenization = Tokenization(thinker)
    assert tokenization.decode(chosen[thought:]) == "hello world"
    assert chosen[-1] == original[-1]
    parts.clock.now += 10
    assert await parts.turn()
    parts.clock.now += parts.settings.publish_every_seconds
    await parts.turn()
    manifest = parts.store.manifest("tuneloop", 1)
    assert dict(manifest.data.samples) == {"kto": 3, "dpo": 1, "sft": 1}
    learned = {
        (e.text, e.completion_id): e.tokens
        for name in ("t0", "e")
        for e in downstream.of_feedback(parts.database, name).effects
    }
    # Tokens of the answers alone: nothing else was learned of.
    after = {name: len(r.completion_token_ids) - r.reasoning_tokens for name, r in answers.items()}
    assert learned["answer", "c0"] == after["c0"]
    assert learned["answer", "c3"] == after["c3"]
    assert learned["edit", ""] == len(chosen) - thought
    assert manifest.metrics["tokens"] == (
        after["c0"] + after["c1"] + after["c2"] + 2 * (len(chosen) - thought) + after["c3"]
    )


async def test_policy_gradients_teach_the_thought_too(tmp_path: Path, thinker: Path) -> None:
    parts = make_parts(tmp_path, thinker, policy_gradient="grpo", policy_gradient_batch_size=2)
    trainer = parts.training_run.trainer
    found = [
        thought_about(thinker, f"c{n}", f"hello {n}", group_id="g", n=2, thought=thought)
        for n, thought in enumerate(("a river", "the sea"))
    ]
    sequences = [sequence_of(rollout) for rollout in found]
    logprobs = trainer.logprobs(sequences)
    found = [
        replace(rollout, generation_logprobs=of_one)
        for rollout, of_one in zip(found, logprobs, strict=True)
    ]
    recorder.record_rollouts(parts.database, found, parts.clock())
    scored = [make_score("c0", 1.0), make_score("c1", 0.0)]
    recorder.record_scores(
        parts.database, scored, parts.clock(), rules=SampleRules(scored_objective="grpo")
    )
    parts.clock.now += 100
    assert await parts.turn()
    parts.clock.now += parts.settings.publish_every_seconds
    await parts.turn()
    manifest = parts.store.manifest("tuneloop", 1)
    assert dict(manifest.data.samples) == {"grpo": 2}
    assert manifest.metrics["tokens"] == sum(len(r.completion_token_ids) for r in found)


def sequence_of(rollout: Rollout) -> TokenSequence:
    return TokenSequence(
        prompt_token_ids=rollout.prompt_token_ids,
        completion_token_ids=rollout.completion_token_ids,
        generation_logprobs=(),
        temperature=1.0,
        reasoning_tokens=rollout.reasoning_tokens,
    )


def test_rows_of_files_have_thoughts_too(thinker: Path) -> None:
    tokens = PromptTokenizer(thinker, max_length=None, as_chat=True)

    def samples_of(objective: Objective, **row: Any) -> Sequence[Any]:
        table = Table(name="rows", rows=[row])
        return sample_maker(objective, table, tokens, "test")(Fields(row, "row 1"))

    thinks, answers = "<think>\na river\n</think>\n\nhello", "hello"
    for completion, thought in ((thinks, "a river"), (answers, "")):
        row = {"prompt": "Hi", "completion": completion}
        [shown] = samples_of(Objective.SFT, **row)
        assert tokens.thought_text(shown.sequence) == thought
        assert shown.shows_thought == bool(thought)
        [thumb] = samples_of(Objective.KTO, **row, label=True)
        learned = as_learned(thumb, "policy_gradient").sequence.completion_token_ids
        assert tokens.tokenization.decode(learned) == "hello"
        assert completion_text(completion, Fields(row, "row 1")) == "hello"


def places_with_gradient(trainer: PolicyTrainer, make_plan: Any) -> list[list[int]]:
    """For each row, the places whose last hidden state the loss has a gradient in."""
    states: list[Tensor] = []

    def keep(module: Any, given: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
            states.append(output)

    modules = trainer.model.module.named_modules()
    norm = next(module for name, module in modules if name.endswith("model.norm"))
    handle = norm.register_forward_hook(keep)
    plan: Plan = make_plan()
    for micro_loss in plan.micro_losses:
        loss, _ = micro_loss()
        loss.backward()
    handle.remove()
    found = []
    for state in states:
        assert state.grad is not None
        found += [row.abs().sum(-1).nonzero()[:, 0].tolist() for row in state.grad]
    return found


def test_no_gradient_reaches_the_thought_of_a_judged_answer(thinker: Path) -> None:
    """The state before a token is read by nothing but the loss on that token."""
    settings = TrainerSettings(threads=1, packing=False, beta_grpo=0.0, anchor_weight=0.0)
    trainer = PolicyTrainer(thinker, settings)
    good, bad = (
        sequence_of(thought_about(thinker, "c", answer, thought=thought))
        for answer, thought in (("hello 1", "a river"), ("hello", "the sea"))
    )
    asked = len(good.prompt_token_ids)
    whole = [list(range(asked - 1, asked + len(s.completion_token_ids) - 1)) for s in (good, bad)]
    answers = [row[s.reasoning_tokens :] for row, s in zip(whole, (good, bad), strict=True)]
    thumb = trainer.as_learned(ThumbSample(sample_id="t", sequence=good, desirable=True))
    of_kto = places_with_gradient(trainer, lambda: plan_kto(trainer.model, [thumb], settings))
    assert of_kto == [answers[0]]
    pair = trainer.as_learned(PairSample(sample_id="p", chosen=good, rejected=bad))
    of_dpo = places_with_gradient(trainer, lambda: plan_dpo(trainer.model, [pair], settings))
    assert of_dpo == answers
    logprobs = trainer.logprobs([good, bad])
    group = ScoredGroup(
        sample_id="g",
        samples=tuple(
            ScoredSample(
                sample_id=str(reward),
                sequence=replace(sequence, generation_logprobs=known),
                reward=reward,
                policy_version=0,
                stopped=True,
            )
            for reward, sequence, known in zip((1.0, 0.0), (good, bad), logprobs, strict=True)
        ),
    )
    of_grpo = places_with_gradient(
        trainer, lambda: plan_grpo(trainer.model, [trainer.as_learned(group)], settings)
    )
    assert sorted(of_grpo) == sorted(whole)


async def test_an_answer_cut_off_in_its_thought_teaches_the_policy_nothing(
    tmp_path: Path, thinker: Path
) -> None:
    parts = make_parts(tmp_path, thinker)
    silent, spoken = (thought_about(thinker, f"c{n}", text) for n, text in enumerate(("", "hello")))
    recorder.record_rollouts(parts.database, [silent, spoken], parts.clock())
    thumb = make_thumb("t0", "c0", up=False)
    recorder.record_feedback(parts.database, [(thumb, 1)], parts.clock())
    parts.clock.now += 10
    await parts.turn()
    reason = "the answer was cut off in its thought: there is nothing to learn from"
    assert refused(parts) == {"kto": reason}
    assert parts.training_run.step == 0
    # To the reward model it is what an empty answer is.
    [label], _ = ready.take_samples(parts.database, "reward_model", 9)
    assert (label.completion, label.desirable) == ("", False)
    edit = make_edit("e0", "c0", "hello world", user="u2")
    compared = make_feedback("f0", "c1", Comparison(chosen="c1", rejected=("c0",)))
    recorder.record_feedback(parts.database, [(edit, 2), (compared, 3)], parts.clock())
    for objective, names in (("sft", {"e0"}), ("dpo", {"e0", "f0"})):
        taken, refusals = ready.take_samples(
            parts.database, objective, 9, edit_tokens=EditTokenizer(thinker)
        )
        assert taken == []
        assert {refusal.sample_id for refusal in refusals} == names
        assert {refusal.reason for refusal in refusals} == {reason}


def test_answers_in_the_same_words_are_no_pair_whatever_their_thoughts(
    tmp_path: Path, thinker: Path
) -> None:
    parts = make_parts(tmp_path, thinker)
    for name, thought in (("c0", "a river"), ("c1", "the sea")):
        rollout = thought_about(thinker, name, "hello", thought=thought, group_id="g", n=2)
        recorder.record_rollouts(parts.database, [rollout], parts.clock())
    thumbs = [make_thumb("t0", "c0", True), make_thumb("t1", "c1", False)]
    compared = make_feedback("f", "c0", Comparison(chosen="c0", rejected=("c1",)))
    given = [(event, number) for number, event in enumerate([*thumbs, compared])]
    recorder.record_feedback(parts.database, given, parts.clock())
    taken, [refusal] = ready.take_samples(parts.database, "dpo", 9)
    assert taken == []
    assert (refusal.sample_id, refusal.reason) == ("f", "the completions have the same tokens")
