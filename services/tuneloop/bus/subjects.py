"""Subjects, streams and routing keys: the only place that spells them.

`tuneloop.v1.<policy>.rollout.generated.<user_hash>`, `….rollout.scored.<user_hash>`,
`….feedback.<feedback id>.<kind>.<user_hash>`, `….signal.<kind>.<user_hash>`, `….weights.published`,
`….weights.activated`, `….learner.step`. A retraction of feedback has its id and the kind
`retracted`. Dead letters are `tuneloop.dead.<consumer>`, with `.<user_hash>` if they are about a
user. The user's hash is part of the subject so that forgetting a user is a purge. A feedback's id
comes before its kind and user: JetStream searches for it before every publish with a client's id,
and would walk over everything stored if a wildcard came first.
"""

import re

from tuneloop.errors import InvalidRequest

ROLLOUTS = "TUNELOOP_ROLLOUTS"
FEEDBACK = "TUNELOOP_FEEDBACK"
SIGNALS = "TUNELOOP_SIGNALS"
LEARNER = "TUNELOOP_LEARNER"
DEAD_LETTERS = "TUNELOOP_DEAD_LETTERS"
ROUTING_BUCKET = "tuneloop_routing"


stream_subjects = {
    ROLLOUTS: ["tuneloop.v1.*.rollout.>"],
    FEEDBACK: ["tuneloop.v1.*.feedback.>"],
    SIGNALS: ["tuneloop.v1.*.signal.>"],
    LEARNER: ["tuneloop.v1.*.weights.>", "tuneloop.v1.*.learner.>"],
    DEAD_LETTERS: ["tuneloop.dead.>"],
}


RETRACTED = "retracted"
ABOUT_USERS = ("rollout", "feedback", "signal")
TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")


def token(value: str, field: str) -> str:
    """Return `value` if it can be one token of a subject, else raise `InvalidRequest`."""
    if TOKEN.fullmatch(value) is None:
        raise InvalidRequest(
            f"{field}: must be 1 to 128 letters, digits, '_' or '-', got {value[:40]!r}",
            param=field,
        )
    return value


def rollout_generated(policy: str, user_hash: str) -> str:
    """A rollout was generated."""
    return f"tuneloop.v1.{token(policy, 'policy')}.rollout.generated.{token(user_hash, 'user')}"


def rollout_scored(policy: str, user_hash: str) -> str:
    """A rollout was scored."""
    return f"tuneloop.v1.{token(policy, 'policy')}.rollout.scored.{token(user_hash, 'user')}"


def rollouts_of(policy: str, event: str) -> str:
    """Return the filter for a policy's rollouts that were `generated` or `scored`."""
    return f"tuneloop.v1.{token(policy, 'policy')}.rollout.{token(event, 'event')}.*"


def feedback_of(policy: str) -> str:
    """Filter for all feedback on a policy."""
    return f"tuneloop.v1.{token(policy, 'policy')}.feedback.>"


def of_user(user_hash: str) -> list[tuple[str, str]]:
    """Return stream and filter of everything that a user's requests and judgements left."""
    user = token(user_hash, "user_hash")
    return [
        (ROLLOUTS, f"tuneloop.v1.*.rollout.*.{user}"),
        (FEEDBACK, f"tuneloop.v1.*.feedback.*.*.{user}"),
        (SIGNALS, f"tuneloop.v1.*.signal.*.{user}"),
        (DEAD_LETTERS, f"tuneloop.dead.*.{user}"),
    ]


def filler(stream: str) -> str:
    """Return the subject of messages that only fill a file: no policy has this name."""
    return stream_subjects[stream][0].replace("*", "~").replace(">", "~")


def user_in(subject: str) -> str:
    """Return the user's hash in the subject of an event about a user; empty in others."""
    tokens = subject.split(".")
    return tokens[-1] if len(tokens) > 4 and tokens[3] in ABOUT_USERS else ""


def dead_letter(consumer: str, user_hash: str = "") -> str:
    """An event that a consumer could not process, about a user if that is known."""
    about = f".{token(user_hash, 'user')}" if user_hash else ""
    return f"tuneloop.dead.{token(consumer, 'consumer')}{about}"


def feedback(policy: str, kind: str, user_hash: str, feedback_id: str) -> str:
    """Feedback was given."""
    return (
        f"tuneloop.v1.{token(policy, 'policy')}.feedback.{token(feedback_id, 'id')}"
        f".{token(kind, 'kind')}.{token(user_hash, 'user')}"
    )


def feedback_with_id(feedback_id: str) -> str:
    """Filter for the feedback with an id, whatever its policy, kind and user."""
    return f"tuneloop.v1.*.feedback.{token(feedback_id, 'id')}.*.*"


def feedback_retracted(policy: str, user_hash: str, feedback_id: str) -> str:
    """Feedback was retracted."""
    return feedback(policy, RETRACTED, user_hash, feedback_id)


def is_retraction(subject: str) -> bool:
    """Whether a subject of feedback is that of a retraction."""
    return subject.split(".")[5] == RETRACTED


def signal(policy: str, kind: str, user_hash: str) -> str:
    """A user did something with a completion."""
    return (
        f"tuneloop.v1.{token(policy, 'policy')}.signal.{token(kind, 'kind')}"
        f".{token(user_hash, 'user')}"
    )


def signals_of(policy: str) -> str:
    """Filter for all signals about a policy."""
    return f"tuneloop.v1.{token(policy, 'policy')}.signal.>"


def weights_published(policy: str) -> str:
    """A version was published."""
    return f"tuneloop.v1.{token(policy, 'policy')}.weights.published"


def weights_activated(policy: str) -> str:
    """A version started to serve."""
    return f"tuneloop.v1.{token(policy, 'policy')}.weights.activated"


def learner_step(policy: str) -> str:
    """The learner committed a step."""
    return f"tuneloop.v1.{token(policy, 'policy')}.learner.step"


def stable_policy_key(policy: str) -> str:
    """Routing key of the policy version to serve; its value is a serialized WeightsReference."""
    return f"policy.{token(policy, 'policy')}.stable"


def canary_policy_key(policy: str) -> str:
    """Routing key of what a share of the users gets; its value is a serialized CanaryRoute."""
    return f"policy.{token(policy, 'policy')}.canary"


def reward_model_key(policy: str) -> str:
    """Routing key of the reward model to score with; its value is a serialized WeightsReference."""
    return f"reward_model.{token(policy, 'policy')}.stable"


def usage_key(key_id: str) -> str:
    """Routing key of what an API key has used today: kept here for its compare-and-set."""
    return f"usage.{token(key_id, 'key')}"


def costs_key(slot: int) -> str:
    """Routing key of what one day's answers cost; days share a fixed number of slots."""
    return f"usage.day.{slot}"


def routing(key: str) -> str:
    """Return the subject on which the routing bucket stores a key."""
    return f"$KV.{ROUTING_BUCKET}.{key}"


stream_of_family = {
    "rollout": ROLLOUTS,
    "feedback": FEEDBACK,
    "signal": SIGNALS,
    "weights": LEARNER,
    "learner": LEARNER,
}


def stream_of(subject: str) -> str:
    """The stream that stores `subject` (which may be a filter); raises `InvalidRequest`."""
    tokens = subject.split(".")
    if tokens[:2] == ["tuneloop", "dead"] and len(tokens) > 2:
        return DEAD_LETTERS
    stream = stream_of_family.get(tokens[3]) if len(tokens) > 4 else None
    if stream is None or tokens[:2] != ["tuneloop", "v1"]:
        raise InvalidRequest(f"subject: no stream stores {subject!r}", param="subject")
    return stream


def matches(subject_filter: str, subject: str) -> bool:
    """Whether `subject` matches: `*` stands for one token, a final `>` for one or more."""
    wanted, tokens = subject_filter.split("."), subject.split(".")
    for position, want in enumerate(wanted):
        if want == ">":
            return len(tokens) > position
        if position >= len(tokens) or want not in ("*", tokens[position]):
            return False
    return len(wanted) == len(tokens)
