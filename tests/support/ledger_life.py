"""A ledger's whole life in a few events, and everything that can be asked of it."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from support.learner_events import (
    START,
    edit_tokens,
    make_comparison,
    make_edit,
    make_feedback,
    make_metric,
    make_ranking,
    make_rating,
    make_rollout,
    make_score,
    make_thumb,
    make_turn,
)

from tuneloop.feedback import Comment, Feedback, Retraction
from tuneloop.learner.ledger.accounting import (
    decisions,
    downstream,
    forget_user,
    lineage,
    promotions,
    steps,
    versions,
)
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import lifecycle, recorder
from tuneloop.learner.ledger.events.sample_rules import SampleRules
from tuneloop.learner.ledger.queue import (
    agreement,
    groups,
    prompts,
    ratings,
    ready,
    ref_logprobs,
    replay,
)
from tuneloop.learner.ledger.reports import (
    alarm_figures,
    canary_traffic,
    evaluations,
    export,
    feedback,
    metric_sums,
    rater_votes,
    traffic,
)
from tuneloop.policies import Activation, WeightsReference
from tuneloop.rollouts import Rollout, RolloutSource, ScoredRollout

GRPO = SampleRules(scored_objective="grpo")
OBJECTIVES = ("sft", "kto", "dpo", "ppo", "grpo", "reward_model")

ROLLOUTS = [
    make_rollout("a", group_id="g1", n=2, text="A."),
    make_rollout("b", group_id="g1", n=2, text="B."),
    make_rollout("c", user="u2", prompt=(1, 7), text="A NUL \0 in it."),
    make_rollout("d", user="u2", version=1, prompt=(1, 7), completion=(3, 2)),
    make_rollout("e", user="learner", version=1, source=RolloutSource.PROMPTS),
    make_rollout("v", user="learner", version=1, prompt=(9, 9), source=RolloutSource.EVAL),
    make_rollout("held", user="u3", version=1, prompt=(4, 4)),
    make_turn("turn0", 0, user="u6"),
    make_turn("turn1", 1, user="u6", version=1),
]
FEEDBACK: list[Feedback] = [
    make_thumb("t1", "a", True),
    make_thumb("t2", "b", False, second=1),
    make_thumb("t3", "c", True, user="u2", second=2),
    make_thumb("t4", "c", False, user="u2", second=3),
    make_thumb("t5", "held", True, user="u3", second=4),
    make_comparison("p1", "b", "a", user="u2", second=5),
    make_ranking("k1", "a", "b", "c", user="u4", second=6),
    make_rating("r1", "a", 4.0, second=7),
    make_rating("r2", "b", 1.0, second=8),
    make_edit("e1", "d", "Better.", user="u2", second=9),
    make_thumb("late", "nowhere", True, user="u5", second=10),
    make_feedback("say", "a", Comment(text="Fine."), second=11),
    make_metric("m1", "a", "task_solved", True, second=12),
    make_metric("m2", "a", "task_solved", False, user="u2", second=13),
    make_metric("m5", "b", "task_solved", 7.0, second=16),
    make_metric("m3", "c", "seconds", 2.5, user="u2", second=14),
    make_metric("m4", "d", "seconds", 3.5, user="u2", second=15),
    make_thumb("s1", "", True, user="u6", second=17, session_id="s"),
    make_rating("s2", "", 3.0, user="u6", second=18, session_id="s"),
    make_metric("s3", "", "task_solved", True, user="u6", second=19, session_id="s"),
]
SCORES = [
    make_score("a", 1.0),
    make_score("b", -1.0),
    make_score("a", 0.5, reward_model_version=2),
    make_score("d", 0.25),
    make_score("e", 0.75, informative=False),
    make_score("v", 0.1),
]
EVENTS: list[Any] = [*ROLLOUTS, *FEEDBACK, *SCORES]


def take_in(ledger: Database, events: Sequence[Any]) -> None:
    for number, event in enumerate(events):
        match event:
            case Rollout():
                recorder.record_rollouts(ledger, [event], 100.0)
            case Feedback():
                recorder.record_feedback(ledger, [(event, number)], 100.0, rules=GRPO)
            case ScoredRollout():
                recorder.record_scores(ledger, [event], 100.0)
            case Retraction():
                lifecycle.record_retractions(ledger, [(event, number)], 100.0)


def learn(ledger: Database) -> None:
    """Train twice on what is there, publish, release, go half the way back, decide."""
    prompts.hold_out(ledger, [(4, 4)])
    for number in (1, 2):
        taken = {
            o: ready.take_samples(ledger, o, 2, edit_tokens=edit_tokens)[0] for o in ("kto", "dpo")
        }
        used = {o: [sample.sample_id for sample in found] for o, found in taken.items()}
        done = steps.Step(step=number, samples=used, skipped=False, metrics={"loss": 0.5})
        steps.commit_steps(ledger, "policy", [done], f"step-{number}", 100.0 + number)
        publish(ledger, number)
    again = replay.replays(ledger, "kto", 2, seed="s", edit_tokens=edit_tokens)
    last = steps.Step(
        step=3,
        samples={"ppo": [s.sample_id for s in ready.take_samples(ledger, "ppo", 9)[0]]},
        skipped=False,
        metrics={},
        replayed={"kto": [sample.sample_id for sample in again]},
    )
    steps.commit_steps(ledger, "policy", [last], "step-3", 103.0)
    refusal = ready.Refusal(sample_id="e1", objective="sft", reason="too\0long")
    ready.refuse(ledger, [refusal])
    ref_logprobs.save_logprobs(ledger, {"key": (-0.5, -0.25)})
    decisions.record_decision(
        ledger, version=2, kind="gate", outcome="pass", numbers={"n": 1}, actor="gate", now=105.0
    )


def publish(ledger: Database, version: int) -> None:
    versions.add_version(
        ledger,
        model="policy",
        version=version,
        policy="tuneloop",
        parent=version - 1,
        first_step=version - 1,
        last_step=version,
        manifest="{}",
        created_time=START,
    )
    reference = WeightsReference(
        policy="tuneloop", policy_version=version, uri="s3://b/x", manifest_sha256="0" * 64
    )
    versions.mark_stored(ledger, "policy", version, reference, "{}")
    with ledger.write() as connection:
        promotions.set_stable(
            connection,
            "policy",
            version,
            previous=version - 1,
            action="publish",
            actor="x",
            now=104.0,
        )
    activation = Activation(
        policy="tuneloop",
        policy_version=version,
        replica="r",
        swap_seconds=0.1,
        activated_time=START,
    )
    recorder.record_activation(ledger, "policy", activation)


def retraction_of(event: Feedback) -> Retraction:
    return Retraction(
        feedback_id=event.feedback_id,
        kind=event.kind,
        policy=event.policy,
        tenant=event.tenant,
        user_hash=event.user_hash,
        retracted_time=event.accepted_time + timedelta(seconds=1),
    )


def everything(ledger: Database) -> dict[str, Any]:
    """All answers, in an order that no collation decides."""
    answers: dict[str, Any] = {}
    for objective in OBJECTIVES:
        answers[objective] = (
            ready.counts(ledger, objective),
            ready.readiness(ledger, objective),
            by_id(ready.take_samples(ledger, objective, 99, edit_tokens=edit_tokens)[0]),
        )
    with ledger.read() as connection:
        answers["flip rate"] = agreement.flip_rate(connection)
        answers["ratings"] = ratings.read(connection).standardised("u1", 4.0)
    with_pages = feedback.browse(ledger, "tuneloop", feedback.FeedbackFilters(), limit=5)
    answers |= {
        "refused": ready.unreported(ledger, 9),
        "groups": groups.take_groups(ledger, 9, now=1e9, wait_seconds=0.0),
        "accuracy": agreement.ranking_accuracy(ledger),
        "traffic": traffic.traffic(ledger, [0, 1, 2]),
        "evaluation": evaluations.evaluate(ledger, 1),
        "newest evaluated": evaluations.newest_evaluated(ledger),
        "browsed": with_pages,
        "next page": feedback.browse(
            ledger, "tuneloop", feedback.FeedbackFilters(), limit=9, before=with_pages[1] or "9e9.x"
        ),
        "outstanding": prompts.outstanding(ledger, 1, {0, 1}),
        "asked": prompts.recorded(ledger, {"g1", "none"}),
        "replays": by_id(replay.replays(ledger, "kto", 2, seed="s", edit_tokens=edit_tokens)),
        "references": ref_logprobs.load_logprobs(ledger, ["key", "none"]),
        "checkpoints": steps.checkpoints(ledger, "policy"),
        "newest step": steps.newest_step(ledger, "policy"),
        "staleness": steps.staleness(ledger),
        "unpublished": steps.unpublished_evidence(ledger, "policy", 0),
        "line": lineage.ancestors(ledger, "policy", 2),
        "fresh": sorted(lineage.fresh_versions(ledger, 1)),
        "uses": lineage.uses_of(ledger, "policy", 1),
        "learned from": lineage.learned_from(ledger, "policy", 9),
        "feedback times": sorted(lineage.feedback_times(ledger, "policy", 1)),
        "versions": versions.list_versions(ledger, "policy", limit=9),
        "stable": versions.stable_version(ledger, "policy"),
        "head": versions.head(ledger, "policy"),
        "decisions": [
            # A server numbers on where a table was emptied.
            asdict(decision) | {"number": None}
            for decision in decisions.of_version(ledger, "policy", 2)
        ],
        "rows": forget_user.row_counts(ledger),
    }
    answers |= {
        "arms": by_user(canary_traffic.thumbs(ledger, [0, 1], 0.0)),
        "arms' metric": canary_traffic.measured(
            ledger, "task_solved", canary=1, stable=0, since=0.0
        ),
        "metric by version": metric_sums.metric_sums(ledger, "seconds", 0),
        "arms' rewards": by_user(canary_traffic.rewards(ledger, [0, 1], 0.0)),
        "earlier rewards": sorted(canary_traffic.earlier_rewards(ledger, 0, 1e12)),
        "what alarms see": alarm_figures.seen(ledger, least=1, window=9),
        "votes": sorted(rater_votes.votes(ledger), key=repr),
        "active": rater_votes.active(ledger, 9),
        "owners": rater_votes.owners(ledger, "kto", ["t1", "t3"]),
        "reached": [downstream.of_user(ledger, user) for user in ("u1", "u2", "nobody")],
    }
    for kind in export.KINDS:
        found = list(export.pages(ledger, export.Wanted(kind=kind)))
        answers[f"exported {kind}"] = sorted(line for page in found for line in page)
    return answers


def by_user(found: Sequence[canary_traffic.JudgedAnswer]) -> list[canary_traffic.JudgedAnswer]:
    return sorted(found, key=lambda given: (given.user_hash, given.group_id, given.value))


def by_id(found: Sequence[Any]) -> list[Any]:
    return sorted(found, key=lambda sample: sample.sample_id)
