"""Metrics of the gateway, served at its own `/metrics`."""

from prometheus_client import Counter, Gauge, Histogram

from tuneloop.telemetry import LATENCY_BUCKETS

http_requests = Counter(
    "tuneloop_gateway_http_requests_total",
    "HTTP requests answered, by route, method and status; 499 is a client that disconnected.",
    ["route", "method", "status"],
)
http_request_seconds = Histogram(
    "tuneloop_gateway_http_request_seconds",
    "Seconds from a request's first byte to its answer's last, by route.",
    ["route"],
    buckets=LATENCY_BUCKETS,
)
in_flight = Gauge(
    "tuneloop_gateway_http_requests_in_flight", "HTTP requests that are being answered."
)
time_to_first_token_seconds = Histogram(
    "tuneloop_gateway_time_to_first_token_seconds",
    "Seconds from a completion's request to the first piece of text from generation.",
    buckets=LATENCY_BUCKETS,
)
completion_tokens = Counter(
    "tuneloop_gateway_completion_tokens_total",
    "Tokens passed on to callers, by whether the answer was streamed.",
    ["stream"],
)
best_of_answers = Counter(
    "tuneloop_gateway_best_of_answers_total",
    "Answers chosen from several candidates, by what chose: reward, or none where nothing could "
    "tell and the first was answered.",
    ["chosen_by"],
)
cost = Counter(
    "tuneloop_gateway_cost_total",
    "What answers cost by the prices in settings, by policy, version (the latest ones) and API "
    "key; without prices there is none.",
    ["policy", "policy_version", "key"],
)
feedback_accepted = Counter(
    "tuneloop_gateway_feedback_accepted_total",
    "Feedback stored by the bus and acknowledged, by kind; a repeat of the same id counts once.",
    ["kind"],
)
signals_accepted = Counter(
    "tuneloop_gateway_signals_accepted_total",
    "Signals (what users did with answers) stored by the bus and acknowledged, by kind.",
    ["kind"],
)
feedback_refused = Counter(
    "tuneloop_gateway_feedback_refused_total",
    "Feedback not accepted, by the code of the error that was answered.",
    ["reason"],
)
# There from the start, so that the first one is an increase.
feedback_refused.labels("unavailable")
feedback_shed = Counter(
    "tuneloop_gateway_feedback_shed_total",
    "Feedback refused because its stream fills and this user or key stored much lately.",
    ["kind"],
)
feedback_stream_share = Gauge(
    "tuneloop_gateway_feedback_stream_ratio",
    "How full the stream of feedback is, from 0 to 1; full, it refuses everybody's.",
)
redactions = Counter(
    "tuneloop_gateway_redactions_total",
    "Requests and judgements examined for personal data, where that is on: clean, redacted, or "
    "failed (nothing was kept).",
    ["outcome"],
)
for outcome in ("clean", "redacted", "failed"):
    # There from the start, so that the first one is an increase.
    redactions.labels(outcome)
feedback_retracted = Counter(
    "tuneloop_gateway_feedback_retracted_total", "Retractions stored by the bus and acknowledged."
)
refused = Counter(
    "tuneloop_gateway_refused_requests_total",
    "Requests without a key that allows them, by the code of the error that was answered.",
    ["reason"],
)
repeats = Counter(
    "tuneloop_gateway_repeats_total",
    "Completion requests asked again, by the header that says so and by what became of them: "
    "joined (the answer was running), replayed (it had ended) or refused.",
    ["header", "outcome"],
)
