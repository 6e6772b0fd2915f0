"""Metrics of the generation process."""

from prometheus_client import Counter, Gauge, Histogram

from tuneloop.telemetry import LATENCY_BUCKETS

SWAP_BUCKETS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)
LOOP_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 21600.0)

completions = Counter(
    "tuneloop_completions_total", "Completions by finish reason.", ["finish_reason"]
)
request_errors = Counter(
    "tuneloop_generation_errors_total", "Requests that ended in an error, by reason.", ["reason"]
)
prompt_tokens = Counter("tuneloop_prompt_tokens_total", "Tokens of accepted prompts.")
completion_tokens = Counter("tuneloop_completion_tokens_total", "Tokens sampled.")
time_to_first_token = Histogram(
    "tuneloop_time_to_first_token_seconds",
    "Seconds from the request to its first token.",
    buckets=LATENCY_BUCKETS,
)
inter_token_latency = Histogram(
    "tuneloop_inter_token_latency_seconds",
    "Seconds between two outputs of one completion.",
    buckets=LATENCY_BUCKETS,
)
grammars_tried = Counter(
    "tuneloop_grammars_tried_total",
    "Grammars compiled in the process for that, by verdict: fine, slow, heavy, fatal or busy.",
    ["verdict"],
)
running_requests = Gauge("tuneloop_running_requests", "Requests being answered.")

policy_version = Gauge("tuneloop_policy_version", "The version served now.", ["policy"])
loaded_versions = Gauge("tuneloop_loaded_versions", "Versions in the engine's memory.")
canary_requests = Counter(
    "tuneloop_canary_requests_total",
    "Users' requests while a canary is in memory, by arm: canary or stable.",
    ["arm"],
)
swap_seconds = Histogram(
    "tuneloop_swap_seconds",
    "Seconds from the notice of a version to serving it.",
    ["kind"],
    buckets=SWAP_BUCKETS,
)
pause_seconds = Histogram(
    "tuneloop_swap_pause_seconds",
    "Seconds of a swap in which no token could be sampled.",
    ["kind"],
    buckets=SWAP_BUCKETS,
)
resume_seconds = Histogram(
    "tuneloop_swap_resume_seconds",
    "Seconds from the end of a pause for full weights to the first token of a request that waited.",
    buckets=SWAP_BUCKETS,
)
swaps_refused = Counter(
    "tuneloop_swaps_refused_total", "Versions that were not loaded, by what refused them.", ["by"]
)
for part in ("store", "check", "engine"):
    # There from the start, so that the first one is an increase.
    swaps_refused.labels(part)
feedback_to_serving = Histogram(
    "tuneloop_feedback_to_serving_seconds",
    "Seconds from the oldest feedback in a new version to that version serving.",
    buckets=LOOP_BUCKETS,
)

rollouts_published = Counter("tuneloop_rollouts_published_total", "Rollouts stored by the bus.")
rollouts_retried = Counter(
    "tuneloop_rollouts_retried_total", "Attempts to store an event that failed and are repeated."
)
rollouts_dropped = Counter(
    "tuneloop_rollouts_dropped_total", "Rollouts that could not be stored, by reason.", ["reason"]
)
for reason in ("invalid", "overflow", "personal_data", "refused", "shutdown", "unexamined"):
    rollouts_dropped.labels(reason)
rollout_buffer_length = Gauge("tuneloop_rollout_buffer_length", "Events waiting to be stored.")
