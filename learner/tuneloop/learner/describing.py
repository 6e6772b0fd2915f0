"""Versions and decisions on the wire."""

import json
from collections.abc import Sequence

from tuneloop.learner.ledger.decisions import Decision
from tuneloop.learner.ledger.versions import Version
from tuneloop.v1 import learner_pb2
from tuneloop.wire import timestamp


def version_to_proto(
    version: Version,
    evaluated: learner_pb2.Evaluation | None,
    figures: learner_pb2.Traffic | None,
    decided: Sequence[learner_pb2.Decision],
) -> learner_pb2.PolicyVersion:
    """A version on the wire."""
    activated = version.activated_time
    return learner_pb2.PolicyVersion(
        policy=version.policy,
        policy_version=version.version,
        parent_version=version.parent,
        state=version.state.value,
        manifest_json=version.manifest,
        created_time=timestamp(version.created_time),
        activated_time=None if activated is None else timestamp(activated),
        evaluation=evaluated,
        traffic=figures,
        decisions=decided,
    )


def decision_to_proto(decision: Decision, *, with_numbers: bool = False) -> learner_pb2.Decision:
    """A decision on the wire."""
    return learner_pb2.Decision(
        kind=decision.kind,
        outcome=decision.outcome,
        reason=decision.reason,
        actor=decision.actor,
        decided_time=timestamp(decision.time),
        numbers_json=json.dumps(dict(decision.numbers)) if with_numbers else "",
    )
