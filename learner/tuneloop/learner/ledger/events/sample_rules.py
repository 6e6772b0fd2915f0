"""Which samples a feedback event makes.

| feedback | objective: kind of sample |
| --- | --- |
| thumb | kto: thumb; reward_model: thumb |
| comparison | dpo: pair for each rejected; reward_model: pair for each rejected; weighted 1/pairs |
| ranking | dpo: pair for each two, weighted 1/C(K,2); reward_model: ranking |
| demonstration | sft: edit; dpo: edit ≻ original; reward_model: edit ≻ original |
| rating | reward_model: rating; grpo: rating, unless a metric is the reward |
| comment | sdft: comment, where comments train |
| metric | ppo or grpo: metric, if it is the reward |

One judgement weighs one: its samples for an objective weigh 1 together, however many they are. So
do the pairs that one user's opposite thumbs on one request make (see `verdict_rules`).

A thumb, a rating or a metric of a session makes the same samples of each of its turns (see
`session_rules`).
What a user wrote after an answer may make the sample of a comment (see `follow_up_rules`).

`topic` is what a verdict is about and `verdict` what it says: of one user's verdicts on one topic
only the last counts (see `verdict_rules`). The two ways to say which of two completions is better
share a topic.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import combinations
from math import comb
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, exists, select

from tuneloop.feedback import PUBLIC_ID, FeedbackKind
from tuneloop.learner.ledger.rows import Row
from tuneloop.learner.ledger.schema import feedback, samples
from tuneloop.learner.samples import Objective, SampleState

_made = samples.alias("made")
LEARNED_FROM: ColumnElement[bool] = feedback.c.kind.not_in(
    (FeedbackKind.COMMENT.value, FeedbackKind.METRIC.value)
) | exists().where(_made.c.feedback_id == feedback.c.feedback_id)
"""That feedback is not only kept: of its kind everything is learned from, or it made samples."""
PAIR_OBJECTIVES = (Objective.DPO, Objective.REWARD_MODEL)
OF_SESSION = and_(
    samples.c.kind.in_(("thumb", "rating", "metric")),
    samples.c.sample_id != samples.c.feedback_id,
)
"""A verdict on a turn that was given on its session: its id is the feedback's and the turn's."""
OF_FOLLOW_UP = samples.c.kind == "follow_up"
"""A hint that nobody gave as one: what the user wrote next (see `follow_up_rules`)."""


class SessionCredit(StrEnum):
    """Which turns a judgement of their session is about."""

    LAST = "last"
    """The last one."""
    EACH = "each"
    """All of them alike."""
    DISCOUNTED = "discounted"
    """The later ones more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditRule:
    """How one judgement is shared among the turns of its session."""

    credit: SessionCredit = SessionCredit.EACH
    discount: float = 0.9
    """γ of `discounted`: a turn weighs this much of the one after it."""

    def weights(self, turns: int) -> list[float]:
        """Return the weight of each turn, oldest first; they sum to 1.

        `discounted`: γ^(T−t) / Σ γ^(T−s) for turn t of T, the discounted return of one reward at
        the end (Sutton & Barto, Reinforcement Learning, eq. 3.8), normalised.
        """
        match self.credit:
            case SessionCredit.LAST:
                parts = [float(turn == turns - 1) for turn in range(turns)]
            case SessionCredit.EACH:
                parts = [1.0] * turns
            case SessionCredit.DISCOUNTED:
                parts = [self.discount ** (turns - 1 - turn) for turn in range(turns)]
        return [part / sum(parts) for part in parts]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRules:
    """What else makes samples than what always does, and how a session's are weighed."""

    scored_objective: str = Objective.PPO
    """What learns from rewards: PPO or GRPO."""
    all_scores_count: bool = False
    """Whether a score is a reward even if no scorer calls it informative."""
    reward_metric: str = ""
    """The metric that is the reward, in the place of scores and ratings; empty: none."""
    comments_train: bool = False
    """Whether comments are hints, for SDFT."""
    signals_count: bool = False
    """Whether signals teach the reward model."""
    follow_ups_noted: bool = False
    """Whether what users write after answers is noted for a judge."""
    credit: CreditRule = field(default_factory=CreditRule)
    """How a judgement of a session is shared among its turns."""

    @property
    def ratings_reward(self) -> bool:
        """Whether ratings are rewards: PPO's value head would have to learn two scales at once."""
        return self.scored_objective == Objective.GRPO and not self.reward_metric

    def is_reward(self, metric: str, api_key_id: str) -> bool:
        """Whether a metric is the reward; never what anybody may send from a web page."""
        return metric == self.reward_metric and api_key_id != PUBLIC_ID


STANDARD = SampleRules()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A completion of a request, as `rollouts` stores its tokens."""

    prompt_tokens: bytes
    answer_tokens: bytes
    """Without those of its thought."""


def samples_of(row: Row, now: float, rules: SampleRules = STANDARD) -> list[Row]:
    """Return the sample rows of a row of `feedback`.

    Samples are not ready until the rollouts they refer to are recorded.
    """
    judgement = json.loads(row["payload"])
    match row["kind"]:
        case "thumb":
            verdict = "up" if row["up"] else "down"
            made = [
                _single(row, o, "thumb", verdict) for o in (Objective.KTO, Objective.REWARD_MODEL)
            ]
        case "comparison":
            made = [
                _pair(row, objective, judgement["chosen"], rejected, number)
                | {"weight": 1 / len(judgement["rejected"])}
                for number, rejected in enumerate(judgement["rejected"])
                for objective in PAIR_OBJECTIVES
            ]
        case "ranking":
            made = _of_ranking(row, judgement["completion_ids"])
        case "demonstration":
            made = [
                _single(row, o, "edit", digest(judgement["text"]))
                for o in (Objective.SFT, Objective.DPO, Objective.REWARD_MODEL)
            ]
        case "rating":
            objectives = [Objective.REWARD_MODEL, *[Objective.GRPO] * rules.ratings_reward]
            made = [_single(row, o, "rating", repr(judgement["value"])) for o in objectives]
        case "comment" if rules.comments_train:
            made = [_single(row, Objective.SDFT, "comment", digest(judgement["text"]))]
        case "metric" if rules.is_reward(judgement["name"], row["api_key_id"]):
            made = [_measured(row, rules.scored_objective, **judgement)]
        case _:
            made = []
    common = {
        "state": SampleState.OPEN,
        "user_hash": row["user_hash"],
        "feedback_id": row["feedback_id"],
        "accepted_time": row["accepted_time"],
        "recorded_time": now,
    }
    return [common | sample for sample in made]


def digest(text: str) -> str:
    """Return what tells a text from others, as a verdict."""
    return hashlib.sha256(text.encode()).hexdigest()


def ranked_completions(row: Row) -> list[Row]:
    """Return the rows of `rankings` of a row of `feedback`."""
    if row["kind"] != "ranking":
        return []
    return [
        {"feedback_id": row["feedback_id"], "position": position, "completion_id": completion_id}
        for position, completion_id in enumerate(json.loads(row["payload"])["completion_ids"])
    ]


def pair_topic(first: str, second: str) -> str:
    """Return the topic "which of these two completions is better"."""
    return "pair:" + "|".join(sorted((first, second)))


def _of_ranking(row: Row, ids: list[str]) -> list[Row]:
    pairs = [
        _pair(row, Objective.DPO, ids[better], ids[worse], f"{better}-{worse}")
        | {"weight": 1 / comb(len(ids), 2)}
        for better, worse in combinations(range(len(ids)), 2)
    ]
    whole = {
        "sample_id": row["feedback_id"],
        "objective": Objective.REWARD_MODEL,
        "kind": "ranking",
        "completion_id": ids[0],
        "rejected_id": None,
        "weight": 1.0,
        "topic": "ranking:" + "|".join(sorted(ids)),
        "verdict": "|".join(ids),
    }
    return [*pairs, whole]


def _single(row: Row, objective: str, kind: str, verdict: str) -> Row:
    return {
        "sample_id": row["feedback_id"],
        "objective": objective,
        "kind": kind,
        "completion_id": row["completion_id"],
        "rejected_id": None,
        "weight": 1.0,
        "topic": f"{kind}:{row['completion_id']}",
        "verdict": verdict,
    }


def _measured(row: Row, objective: str, name: str, value: bool | float) -> Row:
    """Return the sample of a metric; booleans and numbers of one name are two topics."""
    topic = f"metric:{name}:{type(value).__name__}:{row['completion_id']}"
    return _single(row, objective, "metric", repr(value)) | {"topic": topic}


def _pair(row: Row, objective: str, chosen: str, rejected: str, number: int | str) -> Row:
    suffix = "" if number == 0 else f".{number}"
    return {
        "sample_id": row["feedback_id"] + suffix,
        "objective": objective,
        "kind": "pair",
        "completion_id": chosen,
        "rejected_id": rejected,
        "weight": 1.0,
        "topic": pair_topic(chosen, rejected),
        "verdict": chosen,
    }


def scored_sample(row: Row, objective: str, now: float) -> Row:
    return {
        "sample_id": row["completion_id"],
        "objective": objective,
        "kind": "score",
        "state": SampleState.OPEN,
        "completion_id": row["completion_id"],
        "user_hash": "",
        "accepted_time": row["scored_time"],
        "recorded_time": now,
    }


def opposites(connection: Connection, siblings: Mapping[str, Answer], now: float) -> dict[str, Row]:
    """Return the pairs that opposite thumbs imply, by sample id; each weighs 1 by itself.

    Answers with the same tokens are one, which was liked once and disliked once: there is nothing
    to prefer.
    """
    votes = connection.execute(
        select(feedback)
        .where(
            feedback.c.kind == "thumb",
            feedback.c.session_id == "",
            feedback.c.completion_id.in_(list(siblings)),
            feedback.c.status != "retracted",
        )
        .order_by(feedback.c.accepted_time, feedback.c.feedback_id)
    )
    last = {(vote.user_hash, vote.completion_id): vote for vote in votes}
    last = {key: vote for key, vote in last.items() if vote.status == "accepted"}
    pairs: dict[str, Row] = {}
    for chosen in last.values():
        for rejected in last.values():
            opposite = chosen.user_hash == rejected.user_hash and chosen.up and not rejected.up
            liked, disliked = siblings[chosen.completion_id], siblings[rejected.completion_id]
            same_prompt = liked.prompt_tokens == disliked.prompt_tokens
            differ = liked.answer_tokens != disliked.answer_tokens
            if opposite and same_prompt and differ:
                pair = _siblings(chosen, rejected, now)
                pairs[pair["sample_id"]] = pair
    return pairs


def _siblings(chosen: Any, rejected: Any, now: float) -> Row:
    """Return the pair of a thumb up and a thumb down."""
    name = f"{chosen.user_hash}\0{chosen.completion_id}\0{rejected.completion_id}"
    return {
        "sample_id": f"siblings-{hashlib.sha256(name.encode()).hexdigest()[:32]}",
        "objective": Objective.DPO,
        "kind": "siblings",
        "state": SampleState.OPEN,
        "completion_id": chosen.completion_id,
        "rejected_id": rejected.completion_id,
        "weight": 1.0,
        "topic": "",
        "verdict": chosen.completion_id,
        "user_hash": chosen.user_hash,
        "accepted_time": max(chosen.accepted_time, rejected.accepted_time),
        "recorded_time": now,
    }
