"""The only codec between domain types and protobuf.

`*_to_proto` never fails on a valid domain value. `*_from_proto` and `decode_*` validate and raise
`CorruptData` naming the field, so that everything that reaches domain code is well formed.
"""

from tuneloop.wire.feedback import (
    decode_feedback,
    decode_retraction,
    encode_feedback,
    encode_retraction,
    feedback_from_proto,
    feedback_to_proto,
    retraction_event_id,
)
from tuneloop.wire.fields import parse, timestamp
from tuneloop.wire.messages import (
    messages_from_proto,
    messages_to_proto,
    template_options_from_proto,
    tool_use_from_proto,
    tool_use_to_proto,
)
from tuneloop.wire.policies import (
    activation_event_id,
    decode_activation,
    decode_canary,
    decode_learner_stepped,
    decode_routing,
    decode_weights_published,
    encode_activation,
    encode_canary,
    encode_learner_stepped,
    encode_routing,
    encode_weights_published,
    weights_from_proto,
    weights_to_proto,
)
from tuneloop.wire.rollouts import (
    columns_from_proto,
    columns_to_proto,
    decode_rollouts_generated,
    encode_rollout_generated,
    finish_reason_from_proto,
    finish_reason_to_proto,
    rollout_event_id,
    source_from_proto,
    source_to_proto,
    spans_from_proto,
    spans_to_proto,
)
from tuneloop.wire.sampling import sampling_from_proto, sampling_to_proto
from tuneloop.wire.scores import (
    decode_rollout_scored,
    encode_rollout_scored,
    score_event_id,
    score_from_proto,
    score_to_proto,
)
from tuneloop.wire.signals import decode_signal, encode_signal, signal_event_id

__all__ = [
    "activation_event_id",
    "columns_from_proto",
    "columns_to_proto",
    "decode_activation",
    "decode_canary",
    "decode_feedback",
    "decode_learner_stepped",
    "decode_retraction",
    "decode_rollout_scored",
    "decode_rollouts_generated",
    "decode_routing",
    "decode_signal",
    "decode_weights_published",
    "encode_activation",
    "encode_canary",
    "encode_feedback",
    "encode_learner_stepped",
    "encode_retraction",
    "encode_rollout_generated",
    "encode_rollout_scored",
    "encode_routing",
    "encode_signal",
    "encode_weights_published",
    "feedback_from_proto",
    "feedback_to_proto",
    "finish_reason_from_proto",
    "finish_reason_to_proto",
    "messages_from_proto",
    "messages_to_proto",
    "parse",
    "retraction_event_id",
    "rollout_event_id",
    "sampling_from_proto",
    "sampling_to_proto",
    "score_event_id",
    "score_from_proto",
    "score_to_proto",
    "signal_event_id",
    "source_from_proto",
    "source_to_proto",
    "spans_from_proto",
    "spans_to_proto",
    "template_options_from_proto",
    "timestamp",
    "tool_use_from_proto",
    "tool_use_to_proto",
    "weights_from_proto",
    "weights_to_proto",
]
