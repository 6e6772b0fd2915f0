"""Metrics of the reward process."""

from prometheus_client import Counter, Gauge, Histogram

from tuneloop.telemetry import LATENCY_BUCKETS

scored = Counter("tuneloop_reward_scored_total", "Completions scored.", ["scorer"])
unscored = Counter(
    "tuneloop_reward_unscored_total",
    "Completions without a score: no_score (too long for the reward model, or left out by the "
    "function), error, timeout, wrong_length, wrong_type, not_a_number, not_finite.",
    ["scorer", "reason"],
)
hanging = Gauge(
    "tuneloop_reward_scorer_hangs",
    "1 while a function has not returned from a batch after its timeout.",
    ["scorer"],
)
rollouts = Counter(
    "tuneloop_reward_rollouts_total",
    "Rollouts taken from the stream: scored (and published), aborted (not scored), retried, dead.",
    ["outcome"],
)
batch_seconds = Histogram(
    "tuneloop_reward_batch_seconds", "Time to score a batch.", buckets=LATENCY_BUCKETS
)
rewards = Histogram(
    "tuneloop_reward_value",
    "Rewards given.",
    buckets=(-10.0, -5.0, -2.0, -1.0, -0.5, -0.2, 0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
consumer_lag = Gauge(
    "tuneloop_reward_consumer_lag_rollouts", "Rollouts on the stream that wait for their score."
)
reward_model_version = Gauge(
    "tuneloop_reward_model_version", "Version of the reward model that scores; 0 is the base."
)
swap_seconds = Histogram(
    "tuneloop_reward_swap_seconds",
    "Time from the notice of a reward model version to its first use.",
    buckets=LATENCY_BUCKETS,
)
swaps_refused = Counter(
    "tuneloop_reward_swaps_refused_total", "Versions refused, by kind of error.", ["reason"]
)
for reason in ("CORRUPT_DATA", "WEIGHTS_REFUSED", "INTERNAL"):
    # Created with 0, so that the first one counts as an increase.
    swaps_refused.labels(reason)
judge_replies = Counter(
    "tuneloop_reward_judge_replies_total",
    "Replies of the judge: parsed, unparsed (no verdict in it), refused (too long, or against the "
    "provider's rules), unavailable (no answer in all attempts). All but the first abstain.",
    ["outcome"],
)
