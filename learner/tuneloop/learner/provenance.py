"""Lineage and alarms on the wire."""

from collections.abc import Iterable

from tuneloop.learner.ledger.alarms import Raised
from tuneloop.learner.ledger.lineage import Use
from tuneloop.learner.ledger.reached import FeedbackLineage, Reach, UserLineage
from tuneloop.v1 import learner_pb2
from tuneloop.wire import timestamp


def uses_to_proto(uses: Iterable[Use]) -> list[learner_pb2.SampleUse]:
    """The samples a version learned from."""
    return [
        learner_pb2.SampleUse(
            sample_id=use.sample_id,
            objective=use.objective,
            step=use.step,
            epoch=use.epoch,
            feedback_id=use.feedback_id or "",
            completion_id=use.completion_id,
            rejected_id=use.rejected_id or "",
        )
        for use in uses
    ]


def feedback_to_proto(lineage: FeedbackLineage) -> learner_pb2.GetFeedbackLineageResponse:
    """What became of a feedback event."""
    return learner_pb2.GetFeedbackLineageResponse(
        feedback_id=lineage.feedback_id,
        kind=lineage.kind,
        status=lineage.status,
        user_hash=lineage.user_hash,
        completion_ids=lineage.completion_ids,
        accepted_time=timestamp(lineage.accepted_time),
        samples=[
            learner_pb2.SampleLineage(
                sample_id=sample.sample_id,
                objective=sample.objective,
                state=sample.state,
                steps=sample.steps,
            )
            for sample in lineage.samples
        ],
        policy=reach_to_proto(lineage.policy),
        reward_model=reach_to_proto(lineage.reward_model),
    )


def user_to_proto(lineage: UserLineage) -> learner_pb2.GetUserLineageResponse:
    """What there is of a user, and what learned from it."""
    return learner_pb2.GetUserLineageResponse(
        rollouts=lineage.rollouts,
        feedback=lineage.feedback,
        samples=lineage.samples,
        policy=reach_to_proto(lineage.policy),
        reward_model=reach_to_proto(lineage.reward_model),
        rebuild_from=lineage.rebuild_from,
        forgotten=[
            learner_pb2.ForgottenRecord(
                time=timestamp(record.time),
                rollouts=record.forgotten.rollouts,
                feedback=record.forgotten.feedback,
                policy_versions=record.forgotten.policy_versions,
                reward_model_versions=record.forgotten.reward_model_versions,
            )
            for record in lineage.forgotten
        ],
    )


def reach_to_proto(reach: Reach) -> learner_pb2.Reach:
    """Versions that something reached."""
    return learner_pb2.Reach(direct=reach.direct, descended=reach.descended)


def alarms_to_proto(raised: Iterable[Raised]) -> list[learner_pb2.Alarm]:
    """The alarms that are raised."""
    return [
        learner_pb2.Alarm(name=alarm.name, since=timestamp(alarm.since), numbers=alarm.numbers)
        for alarm in raised
    ]
