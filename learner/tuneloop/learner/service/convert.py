"""Convert ledger values to messages of `LearnerService`, and back."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from tuneloop.errors import InvalidRequest
from tuneloop.feedback import FeedbackKind, FeedbackStatus
from tuneloop.learner.intake.importer import ImportedRow
from tuneloop.learner.ledger.accounting.decisions import Decision
from tuneloop.learner.ledger.accounting.downstream import Downstream, FeedbackLineage, UserLineage
from tuneloop.learner.ledger.accounting.forget_user import Record
from tuneloop.learner.ledger.accounting.lineage import Use
from tuneloop.learner.ledger.accounting.senders import Sender, SenderLineage
from tuneloop.learner.ledger.accounting.version_shares import ShareOfVersion
from tuneloop.learner.ledger.accounting.versions import Version
from tuneloop.learner.ledger.queue.ready import SampleCounts
from tuneloop.learner.ledger.reports.alarms import Raised
from tuneloop.learner.ledger.reports.evaluations import Evaluation
from tuneloop.learner.ledger.reports.export import Wanted
from tuneloop.learner.ledger.reports.feedback import FeedbackEntry, FeedbackFilters
from tuneloop.learner.ledger.reports.sessions import SessionLineage
from tuneloop.learner.ledger.reports.traffic import Traffic
from tuneloop.learner.samples import JUDGED_OBJECTIVES
from tuneloop.rollouts import read_tag
from tuneloop.v1 import learner_pb2
from tuneloop.wire import feedback_to_proto, messages_to_proto, timestamp


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


def feedback_lineage_to_proto(lineage: FeedbackLineage) -> learner_pb2.GetFeedbackLineageResponse:
    """The lineage of a feedback event."""
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
        effects=[learner_pb2.Effect(**asdict(effect)) for effect in lineage.effects],
    )


def user_to_proto(lineage: UserLineage) -> learner_pb2.GetUserLineageResponse:
    """The lineage of a user."""
    return learner_pb2.GetUserLineageResponse(
        rollouts=lineage.rollouts,
        feedback=lineage.feedback,
        signals=lineage.signals,
        samples=lineage.samples,
        policy=reach_to_proto(lineage.policy),
        reward_model=reach_to_proto(lineage.reward_model),
        rebuild_from=lineage.rebuild_from,
        forgotten=records_to_proto(lineage.forgotten),
    )


def records_to_proto(records: Iterable[Record]) -> list[learner_pb2.ForgottenRecord]:
    """The records that something was forgotten."""
    return [
        learner_pb2.ForgottenRecord(
            time=timestamp(record.time),
            rollouts=record.forgotten.rollouts,
            feedback=record.forgotten.feedback,
            policy_versions=record.forgotten.policy_versions,
            reward_model_versions=record.forgotten.reward_model_versions,
        )
        for record in records
    ]


def session_to_proto(lineage: SessionLineage) -> learner_pb2.GetSessionResponse:
    """A session, what was said of it, and what it reached."""
    return learner_pb2.GetSessionResponse(
        turns=[
            learner_pb2.SessionTurn(
                completion_id=answer.completion_id,
                policy_version=answer.policy_version,
                finished_time=timestamp(answer.finished_time),
                feedback_ids=answer.feedback_ids,
                used_by_versions=answer.used_by_versions,
            )
            for answer in lineage.answers
        ],
        feedback=map(item_to_proto, lineage.feedback),
        policy=reach_to_proto(lineage.reached.policy),
        reward_model=reach_to_proto(lineage.reached.reward_model),
        rebuild_from=lineage.reached.rebuild_from,
        forgotten=records_to_proto(lineage.reached.forgotten),
    )


def sender_to_proto(lineage: SenderLineage) -> learner_pb2.GetSenderLineageResponse:
    """The lineage of an API key or a tenant."""
    return learner_pb2.GetSenderLineageResponse(
        feedback=lineage.feedback,
        retracted=lineage.retracted,
        users=lineage.users,
        samples=lineage.samples,
        policy=reach_to_proto(lineage.policy),
        reward_model=reach_to_proto(lineage.reward_model),
        versions=[
            learner_pb2.SenderShare(
                policy_version=part.version, samples=part.samples, share=part.share
            )
            for part in lineage.shares
        ],
        rebuild_from=lineage.rebuild_from,
    )


def retracted_to_proto(parts: Iterable[ShareOfVersion]) -> list[learner_pb2.RetractedEvidence]:
    """What was retracted after training, by version."""
    return [
        learner_pb2.RetractedEvidence(
            policy_version=part.version, samples=part.samples, share=part.share
        )
        for part in parts
    ]


def reach_to_proto(reach: Downstream) -> learner_pb2.Reach:
    """Versions that something reached."""
    return learner_pb2.Reach(direct=reach.direct, descended=reach.descended)


def alarms_to_proto(raised: Iterable[Raised]) -> list[learner_pb2.Alarm]:
    """The alarms that are raised."""
    return [
        learner_pb2.Alarm(name=alarm.name, since=timestamp(alarm.since), numbers=alarm.numbers)
        for alarm in raised
    ]


THUMBS = {"": None, "up": True, "down": False}


def filters_of(request: learner_pb2.ListFeedbackRequest) -> FeedbackFilters:
    """Return what to list; raises `InvalidRequest`."""
    kinds, statuses = set(FeedbackKind), set(FeedbackStatus)
    for name, value, known in (
        ("kind", request.kind, {"", *kinds}),
        ("value", request.value, set(THUMBS)),
        ("status", request.status, {"", *statuses}),
    ):
        if value not in known:
            raise InvalidRequest(f"{name}: one of {', '.join(sorted(known - {''}))}", param=name)
    return FeedbackFilters(
        kind=FeedbackKind(request.kind) if request.kind else None,
        up=THUMBS[request.value],
        policy_version=request.policy_version if request.HasField("policy_version") else None,
        user_hash=request.user_hash or None,
        status=FeedbackStatus(request.status) if request.status else None,
        feedback_id=request.feedback_id or None,
        tags=dict(request.tags),
    )


def item_to_proto(item: FeedbackEntry) -> learner_pb2.RecordedFeedback:
    """Feedback with what is known of it."""
    return learner_pb2.RecordedFeedback(
        feedback=feedback_to_proto(item.feedback),
        status=item.status.value,
        chat=messages_to_proto(item.messages) if item.messages else None,
        prompt_text=item.prompt_text,
        completions=[
            learner_pb2.JudgedCompletion(
                completion_id=c.completion_id, text=c.text, policy_version=c.policy_version
            )
            for c in item.completions
        ],
        used_by_versions=item.used_by_versions,
        tags=item.tags,
    )


def sender_of(request: learner_pb2.GetSenderLineageRequest) -> Sender:
    """Return whose feedback is asked about. Raises `InvalidRequest`."""
    if request.WhichOneof("sender") != "tag":
        return Sender(api_key=request.api_key, tenant=request.tenant)
    try:
        return Sender(tag=read_tag(request.tag))
    except ValueError as error:
        raise InvalidRequest(f"tag: {error}", param="tag") from None


def wanted_of(request: learner_pb2.ExportDataRequest) -> Wanted:
    """What to export."""
    since = request.since
    return Wanted(
        kind=request.kind,
        policy_version=request.policy_version if request.HasField("policy_version") else None,
        since=since.seconds + since.nanos * 1e-9 if request.HasField("since") else None,
        tags=dict(request.tags),
    )


def rows_of(request: learner_pb2.ImportDataRequest) -> list[ImportedRow]:
    """Return the rows to import; raises `InvalidRequest` naming one that is not an object."""
    rows = []
    for given in request.rows:
        try:
            row = json.loads(given.row)
        except ValueError as error:
            raise InvalidRequest(f"{given.place}: not JSON: {error}", param="rows") from error
        if not isinstance(row, dict):
            raise InvalidRequest(f"{given.place}: not an object with columns", param="rows")
        rows.append(ImportedRow(place=given.place, row=row, occurrence=given.occurrence))
    return rows


def traffic_to_proto(figures: Traffic) -> learner_pb2.Traffic:
    """Users' requests to a version."""
    reward = figures.reward
    return learner_pb2.Traffic(
        rollouts=figures.rollouts,
        mean_length=figures.length.value,
        length_margin=figures.length.margin,
        mean_thought_length=figures.thought_length.value,
        thought_length_margin=figures.thought_length.margin,
        mean_reward=None if reward is None else reward.value,
        reward_margin=None if reward is None else reward.margin,
        thumbs_up=figures.thumbs_up,
        thumbs_down=figures.thumbs_down,
        metrics=[
            learner_pb2.MetricFigures(
                name=metric.name,
                is_boolean=metric.is_boolean,
                count=metric.count,
                mean=metric.mean.value,
                margin=metric.mean.margin,
            )
            for metric in figures.metrics
        ],
    )


def evaluation_to_proto(found: Evaluation | None) -> learner_pb2.Evaluation | None:
    """An evaluation on the wire; None stays absent."""
    if found is None:
        return None
    return learner_pb2.Evaluation(
        policy_version=found.policy_version,
        prompts=found.prompts,
        scored=found.scored,
        mean_reward=None if found.reward is None else found.reward.value,
        reward_margin=None if found.reward is None else found.reward.margin,
        mean_length=found.length.value,
        length_margin=found.length.margin,
        mean_thought_length=found.thought_length.value,
        thought_length_margin=found.thought_length.margin,
        kl=found.kl,
        reward_model_version=found.reward_model_version,
    )


def waiting_for(
    *, state: str, connected: bool, hold: str, gate: str, counts: Mapping[str, SampleCounts]
) -> str:
    """Return one line; empty while it waits for nothing."""
    if state == "paused":
        return "somebody to resume it"
    if not connected:
        return "the event bus, which cannot be reached"
    if state != "waiting":
        return ""
    if gate:
        return gate
    if hold:
        return f"a promotion ({hold}): new versions stay candidates"
    judgements = [counts[objective] for objective in JUDGED_OBJECTIVES]
    ready = sum(count.ready for count in judgements)
    waiting = sum(count.waiting for count in judgements)
    without = "the rollouts that feedback speaks of" if waiting else "feedback"
    return "more feedback, or a few seconds" if ready else without
