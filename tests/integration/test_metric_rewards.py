"""An application posts a metric, and the policy learns from it: from the client to a version."""

import asyncio
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from support.gateway_stack import running_gateway
from support.learner_events import edit_tokens, make_rollout
from support.learner_parts import Parts
from support.waiting import until

from tuneloop.bus.subjects import rollout_generated
from tuneloop.client import AsyncClient
from tuneloop.gateway.completion_ids import user_hash_in
from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.batching.batcher import PolicyBatcher
from tuneloop.learner.ledger.accounting import downstream
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.schema import feedback
from tuneloop.learner.samples import TokenSequence
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.rollouts import ChatMessage, Prompt, Rollout
from tuneloop.wire import encode_rollout_generated

PAGE = Path(__file__).parents[2] / "docs" / "feedback.md"
TASKS = 8


@dataclass(frozen=True)
class Task:
    """What the example of the documentation works on."""

    number: int
    question: str = "Hi"

    @property
    def user(self) -> str:
        return f"user {self.number}"

    def check(self, answer: str) -> bool:
        return self.number % 2 == 0


def example(url: str) -> str:
    """Return the program of the documentation."""
    section = PAGE.read_text().partition("### A metric as the reward")[2]
    program = re.findall(r"```python\n(.+?)```", section, re.DOTALL)[0]
    assert "http://127.0.0.1:8000" in program
    return str(program).replace("http://127.0.0.1:8000", url)


def make_parts(folder: Path, model: Path, **options: Any) -> Parts:
    given = {
        "reward_metric": "solved",
        "policy_gradient_batch_size": TASKS,
        "warmup_steps": 0,
        "learning_rate": 1e-3,
        "threads": 1,
        **options,
    }
    return with_policy(Parts(folder=folder, options=given), model)


def with_policy(parts: Parts, model: Path) -> Parts:
    parts.training_run.trainer = PolicyTrainer(model, parts.settings.trainer(), base_model="tiny")
    parts.batches = PolicyBatcher(
        parts.database, parts.settings, edit_tokens=edit_tokens, clock=parts.clock
    )
    return parts


def trainer_of(parts: Parts) -> PolicyTrainer:
    trainer = parts.training_run.trainer
    assert isinstance(trainer, PolicyTrainer)
    return trainer


def measured(parts: Parts) -> dict[str, bool]:
    """Return what was said of each completion."""
    query = select(feedback.c.completion_id, feedback.c.measured).where(feedback.c.is_boolean)
    with parts.database.read() as connection:
        return {row.completion_id: bool(row.measured) for row in connection.execute(query)}


def sequence_of(rollout: Rollout) -> TokenSequence:
    return TokenSequence(
        prompt_token_ids=rollout.prompt_token_ids,
        completion_token_ids=rollout.completion_token_ids,
        generation_logprobs=rollout.generation_logprobs,
        temperature=rollout.sampling.temperature,
    )


def answers(parts: Parts, model: Path) -> dict[bool, list[Rollout]]:
    """Return the answers that the policy gave: all that solve a task alike, and all others."""
    tokenization = Tokenization(model)
    asked = Prompt(messages=(ChatMessage(role="user", content="Hi"),))
    found: dict[bool, list[Rollout]] = {True: [], False: []}
    for completion_id, is_solved in measured(parts).items():
        rollout = make_rollout(
            completion_id,
            prompt=tokenization.tokenize(asked).token_ids,
            completion=tokenization.encode_text("yes it is" if is_solved else "no never"),
            user=user_hash_in(completion_id),
        )
        [logprobs] = trainer_of(parts).logprobs([sequence_of(rollout)])
        found[is_solved].append(replace(rollout, generation_logprobs=logprobs))
    return found


async def send(parts: Parts, rollouts: list[Rollout]) -> None:
    for rollout in rollouts:
        subject = rollout_generated("tuneloop", rollout.user_hash)
        event = encode_rollout_generated(rollout)
        await parts.bus.publish(subject, event, event_id=f"rollout-{rollout.completion_id}")


def preference(parts: Parts, given: dict[bool, list[Rollout]]) -> float:
    """Return by how much the policy prefers what solved a task, in nats."""
    solves, fails = (sequence_of(given[is_solved][0]) for is_solved in (True, False))
    of_one, of_other = trainer_of(parts).logprobs([solves, fails])
    return sum(of_one) - sum(of_other)


@pytest.mark.parametrize(
    ("algorithm", "higher_is_better"),
    [("grpo", True), ("grpo", False), ("rloo", True), ("ppo", True)],
)
async def test_what_solved_the_task_gets_likelier(
    tmp_path: Path, tiny_policy: Path, algorithm: str, higher_is_better: bool
) -> None:
    options = {
        "policy_gradient": algorithm,
        "reward_metric_higher_is_better": higher_is_better,
    }
    parts = make_parts(tmp_path, tiny_policy, **options)
    objective = parts.settings.scored_objective
    async with running_gateway(bus=parts.bus) as stack, parts.taking_in():
        program = compile(example(stack.url), str(PAGE), "exec")
        names = {"tasks": [Task(number) for number in range(TASKS)]}
        await asyncio.to_thread(exec, program, names)
        await until(lambda: len(measured(parts)) == TASKS)
        assert ready.counts(parts.database, objective).waiting == TASKS
        given = answers(parts, tiny_policy)
        assert {is_solved: len(found) for is_solved, found in given.items()} == {
            True: TASKS // 2,
            False: TASKS // 2,
        }
        await send(parts, [*given[True], *given[False]])
        await until(lambda: ready.counts(parts.database, objective).ready == TASKS)
        before = preference(parts, given)

        # The process is killed after a step that was not committed.
        batch = parts.training_run.next_batch(parts.batches)
        assert batch is not None
        parts.training_run.train(batch)
    parts = with_policy(parts.again(), tiny_policy)
    parts.training_run.restore()
    assert preference(parts, given) == pytest.approx(before)
    async with running_gateway(bus=parts.bus) as stack, parts.taking_in():
        assert await parts.turn()
        assert not await parts.turn()
        after = preference(parts, given)
        assert (after > before) is higher_is_better
        assert len(parts.used()) == TASKS
        parts.clock.now += parts.settings.publish_every_seconds
        await parts.turn()
        manifest = parts.store.manifest("tuneloop", 1)
        assert manifest.data.samples[objective] == TASKS
        [first, *_] = [row.feedback_id for row in feedback_rows(parts)]
        lineage = downstream.of_feedback(parts.database, first)
        assert [(s.objective, s.state) for s in lineage.samples] == [(objective, "used")]
        assert lineage.policy.direct == (1,)
        async with AsyncClient(stack.url) as client:
            await client.retract(first)
        await until(lambda: downstream.of_feedback(parts.database, first).status == "retracted")


def feedback_rows(parts: Parts) -> Any:
    with parts.database.read() as connection:
        return connection.execute(select(feedback).order_by(feedback.c.feedback_id)).all()
