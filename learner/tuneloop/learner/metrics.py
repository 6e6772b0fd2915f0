"""Metrics of the learner."""

from prometheus_client import Counter, Gauge, Histogram

from tuneloop.learner.samples import ModelRole

rollouts_consumed = Counter(
    "tuneloop_learner_rollouts_consumed_total", "Generated rollouts recorded in the ledger."
)
scores_consumed = Counter("tuneloop_learner_scores_consumed_total", "Scores recorded.")
feedback_consumed = Counter(
    "tuneloop_learner_feedback_consumed_total", "Feedback recorded in the ledger.", ["kind"]
)
signals_consumed = Counter(
    "tuneloop_learner_signals_consumed_total", "Signals recorded in the ledger.", ["kind"]
)
follow_ups_judged = Counter(
    "tuneloop_learner_follow_ups_judged_total",
    "What users wrote after answers, by what a judge read in it: satisfied, corrected, complained "
    "or nothing.",
    ["label"],
)
follow_up_judge_failures = Counter(
    "tuneloop_learner_follow_up_judge_failures_total",
    "Requests to the judge of follow-ups that failed; they are repeated if it was away.",
)
retractions_consumed = Counter(
    "tuneloop_learner_retractions_consumed_total", "Retractions of feedback recorded."
)
feedback_expired = Counter(
    "tuneloop_learner_feedback_expired_total",
    "Feedback that is too old to learn from, or whose rollout never came.",
)
feedback_trimmed = Counter(
    "tuneloop_learner_feedback_trimmed_total",
    "Events of feedback deleted from the stream, long after the ledger had them.",
)
rollouts_pruned = Counter(
    "tuneloop_learner_rollouts_pruned_total",
    "Old rollouts that nobody judged: deleted, or emptied because a step had used them.",
    ["what"],
)
versions_pruned = Counter(
    "tuneloop_learner_versions_pruned_total", "Old versions whose weights were deleted.", ["model"]
)
weights_bytes = Gauge(
    "tuneloop_learner_weights_bytes", "Size of the versions in the weight store.", ["model"]
)
disk_bytes = Gauge(
    "tuneloop_learner_disk_bytes",
    "Size of what the learner keeps on its disk: ledger, checkpoints, outbox, suites.",
    ["kind"],
)
duplicates = Counter(
    "tuneloop_learner_duplicate_events_total",
    "Events that were recorded before and had no effect.",
    ["consumer"],
)
intake_failures = Counter(
    "tuneloop_learner_intake_failures_total",
    "Deliveries that could not be recorded and will come again.",
    ["consumer"],
)
consumer_lag = Gauge(
    "tuneloop_learner_consumer_lag", "Events the ledger has not acknowledged yet.", ["consumer"]
)
ledger_rows = Gauge("tuneloop_learner_ledger_rows", "Rows of the ledger.", ["table"])
ledger_lag_seconds = Gauge(
    "tuneloop_learner_ledger_lag_seconds",
    "Age of the newest feedback when the ledger recorded it.",
)
samples = Gauge(
    "tuneloop_learner_samples",
    "Samples by objective and state: ready, waiting for a rollout, used.",
    ["objective", "state"],
)
batch_fill = Gauge(
    "tuneloop_learner_batch_fill_ratio",
    "Samples that are ready by those that a full batch takes: from 1 on a step is due. Objective "
    "judgements stands for dpo, kto, sft and sdft together.",
    ["objective"],
)
rollouts_stale = Counter(
    "tuneloop_learner_rollouts_stale_total", "Scored rollouts left out as older than max_staleness."
)
samples_refused = Counter(
    "tuneloop_learner_samples_refused_total",
    "Samples that cannot be trained on.",
    ["objective"],
)
steps = Counter("tuneloop_learner_steps_total", "Optimizer steps.", ["model"])
steps_skipped = Counter(
    "tuneloop_learner_steps_skipped_total",
    "Steps that left the weights as they were.",
    ["model", "reason"],
)
steps_failed = Counter(
    "tuneloop_learner_steps_failed_total", "Steps that raised and will be tried again.", ["model"]
)
token_budget = Gauge(
    "tuneloop_learner_token_budget",
    "The most tokens in one forward pass. It falls when memory runs out, and stays there.",
    ["model"],
)
for model in ModelRole:
    # There from the start, so that the first one is an increase.
    steps.labels(model)
    steps_failed.labels(model)
step_seconds = Histogram(
    "tuneloop_learner_step_seconds",
    "Seconds of an optimizer step.",
    ["model"],
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300),
)
step_metric = Gauge(
    "tuneloop_learner_step_metric",
    "Every figure of the last step by name, such as kto_loss or kl.",
    ["model", "name"],
)
loss = Gauge("tuneloop_learner_loss", "Loss of the last step.", ["model"])
kl = Gauge("tuneloop_learner_kl", "Mean KL of policy to reference policy by token, last step.")
logprob_gap = Gauge(
    "tuneloop_learner_logprob_gap",
    "Mean difference of generation's and the learner's log-probs of sampled tokens by the same "
    "weights, in nats; NaN before it was measured.",
)
reward = Gauge("tuneloop_learner_reward", "Mean reward of the last PPO batch.")
clip_fraction = Gauge(
    "tuneloop_learner_clip_fraction", "Clipped tokens of the last PPO batch, 0-1."
)
gradient_norm = Gauge(
    "tuneloop_learner_gradient_norm", "Gradient norm of the last step before clipping.", ["model"]
)
checkpoint_seconds = Histogram(
    "tuneloop_learner_checkpoint_seconds",
    "Seconds to write a checkpoint; of full weights beside the next steps.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
versions_published = Counter(
    "tuneloop_learner_versions_published_total", "Versions published.", ["model"]
)
publish_failures = Counter(
    "tuneloop_learner_publish_failures_total",
    "Publications that stopped half way and will go on.",
    ["model"],
)
release_decisions = Counter(
    "tuneloop_release_decisions_total",
    "Decisions about versions: by kind (gate, canary, promote, …) and what came of it.",
    ["kind", "outcome"],
)
for verdict in ("promote", "hold", "roll_back"):
    # There from the start, so that the first one is an increase.
    release_decisions.labels("canary", verdict)
versions_quarantined = Counter(
    "tuneloop_versions_quarantined_total",
    "Versions that failed the gate, lost as a canary or were rolled back.",
)
gate_seconds = Histogram(
    "tuneloop_release_gate_seconds",
    "Seconds the gate took to examine a candidate.",
    buckets=(1, 2.5, 5, 10, 20, 30, 60, 120, 300),
)
exam_seconds = Histogram(
    "tuneloop_release_exam_seconds",
    "Seconds that a version took to answer the gate's prompts and suites, while it was saved.",
    buckets=(1, 2.5, 5, 10, 20, 30, 60, 120, 300),
)
suite_kl = Gauge(
    "tuneloop_release_suite_kl",
    "KL to version 0 of the newest version scored, nats per token, on its answers to suite items.",
)
gate_held = Gauge(
    "tuneloop_release_gate_held",
    "1 while a candidate waits because generation or reward cannot be asked, else 0.",
)
samples_set_aside = Counter(
    "tuneloop_learner_samples_set_aside_total",
    "Samples not trained on again, since several quarantined versions had learned from them.",
)
policy_version = Gauge("tuneloop_learner_policy_version", "Newest version published.", ["model"])
feedback_to_serving = Histogram(
    "tuneloop_learner_feedback_to_serving_seconds",
    "Seconds from feedback accepted to the version that learned from it serving.",
    buckets=(1, 2.5, 5, 10, 15, 20, 30, 45, 60, 90, 120, 300, 600, 3600),
)
prompts_asked = Counter(
    "tuneloop_learner_prompts_asked_total",
    "Prompts of the learner's own that were answered, by source: prompts or eval.",
    ["source"],
)
eval_version = Gauge("tuneloop_learner_eval_version", "Newest version that has been evaluated.")
eval_reward = Gauge("tuneloop_learner_eval_reward", "Its mean reward on the eval prompts.")
eval_length = Gauge(
    "tuneloop_learner_eval_length_tokens", "Its mean length of answers to the eval prompts."
)
eval_thought_length = Gauge(
    "tuneloop_learner_eval_thought_length_tokens", "Its mean length of the thoughts before them."
)
answer_length = Gauge(
    "tuneloop_learner_answer_length_tokens",
    "Mean length of the newest versions' answers to users, by part: answer or thought.",
    ["part"],
)
answer_repetition = Gauge(
    "tuneloop_learner_answer_repetition_ratio",
    "Share of the 4-grams of those that occurred in them before, 0 to 1, by part.",
    ["part"],
)
eval_kl = Gauge(
    "tuneloop_learner_eval_kl", "Its mean KL to the reference policy by token, on the eval prompts."
)
canary_version = Gauge("tuneloop_canary_version", "The version on trial as a canary; 0: none.")
canary_share = Gauge("tuneloop_canary_share", "Share of the users who get the canary, 0-1.")
canary_difference = Gauge(
    "tuneloop_canary_difference",
    "Bounds of canary minus stable, always valid: low or high, of thumbs, reward or errors "
    "(higher is better).",
    ["figure", "bound"],
)
canary_observations = Gauge(
    "tuneloop_canary_observations",
    "What the comparison rests on: users, for errors requests, by arm (canary or stable).",
    ["figure", "arm"],
)
paused = Gauge("tuneloop_learner_paused", "1 while steps are paused, else 0.")

guard_alarm = Gauge(
    "tuneloop_guard_alarm", "1 while an alarm of this name is raised, else 0.", ["name"]
)
guard_limited = Counter(
    "tuneloop_guard_samples_limited_total",
    "Samples that counted less than their weight, by their rater or by one user's share.",
    ["objective"],
)
retracted_samples = Gauge(
    "tuneloop_learner_retracted_samples",
    "Samples the policy was trained on whose feedback was retracted since.",
)
retracted_share = Gauge(
    "tuneloop_learner_retracted_evidence_ratio",
    "Largest share of what one version was trained on that was retracted since, 0 to 1.",
)
guard_raters_muted = Gauge(
    "tuneloop_guard_raters_muted", "Raters whose judgements count nothing, as others contradict."
)
guard_predictability = Gauge(
    "tuneloop_guard_predictability",
    "How surely the latest thumbs, or pairs, are what others' lead one to expect: 0 is by chance, "
    "1 for certain; NaN before there are eight of either kind.",
    ["family"],
)

BY_NAME = {"kl": kl, "reward": reward, "clip_fraction": clip_fraction}
"""Figures of a policy's step that have a gauge of their own."""
