"""LearnerService: each call is a few lines over the ledger, the loop and the release."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc

from tuneloop.bus import Bus
from tuneloop.bus.subjects import token
from tuneloop.errors import InvalidRequest, NotFound
from tuneloop.host import steady_time
from tuneloop.learner.intake.importer import Importer
from tuneloop.learner.ledger.accounting import (
    decisions,
    downstream,
    forget_user,
    senders,
    steps,
    version_shares,
    versions,
)
from tuneloop.learner.ledger.accounting.senders import Sender
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.reports import evaluations, export, feedback, sessions
from tuneloop.learner.ledger.rows import moment
from tuneloop.learner.loop import Loop
from tuneloop.learner.monitoring.alarm_monitor import AlarmMonitor
from tuneloop.learner.release.promotion import Promotion
from tuneloop.learner.samples import ModelRole, Objective
from tuneloop.learner.service import convert
from tuneloop.learner.service.forget_user import ForgetUser
from tuneloop.learner.service.rebuild import Rebuild
from tuneloop.learner.service.signal_report import report
from tuneloop.learner.service.versions import VersionReports
from tuneloop.learner.settings import LearnerSettings
from tuneloop.rpc.access import actor_of
from tuneloop.rpc.server import Server
from tuneloop.v1 import learner_pb2, learner_pb2_grpc
from tuneloop.wire import timestamp

PAGE_SIZE = 100
FEEDBACK_PAGE = 50
LARGEST_PAGE = 1000

Call: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class LearnerServicer(learner_pb2_grpc.LearnerServiceServicer):
    """Reports on learning and versions, and controls them."""

    def __init__(
        self,
        *,
        settings: LearnerSettings,
        database: Database,
        loop: Loop,
        release: Promotion,
        bus: Bus,
        importer: Importer,
        watch: AlarmMonitor,
        gate: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = steady_time,
    ) -> None:
        """`gate` returns what the gate waits for, in words."""
        self._policy = settings.policy
        self._database = database
        self._loop = loop
        self._release = release
        self._bus = bus
        self._importer = importer
        self._gate = gate
        self._clock = clock
        self._watch = watch
        self._learns_from_comments = settings.weight_of(Objective.SDFT) > 0
        self._forgetting = ForgetUser(database, bus, loop)
        self._rebuilding = Rebuild(database, release, loop)
        self._importing = asyncio.Lock()
        self._versions = VersionReports(database, settings.policy)

    def add_to(self, server: Server) -> None:
        """Answer the learner's calls on a server."""
        server.add(learner_pb2_grpc.add_LearnerServiceServicer_to_server, self)

    async def GetStatus(
        self, request: learner_pb2.GetStatusRequest, context: Call
    ) -> learner_pb2.GetStatusResponse:
        """Return what the learner has, does and waits for."""
        return await asyncio.to_thread(self._status)

    async def ListPolicyVersions(
        self, request: learner_pb2.ListPolicyVersionsRequest, context: Call
    ) -> learner_pb2.ListPolicyVersionsResponse:
        """Return versions, newest first."""
        self._check_policy(request.policy)
        if request.page_size < 0:
            raise InvalidRequest("page_size: must not be negative", param="page_size")
        before = request.before_version if request.HasField("before_version") else None
        limit = request.page_size or PAGE_SIZE
        return await asyncio.to_thread(self._versions.list_versions, limit, before)

    async def GetLineage(
        self, request: learner_pb2.GetLineageRequest, context: Call
    ) -> learner_pb2.GetLineageResponse:
        """Return what made a version: parents, steps, feedback and rollouts."""
        self._check_policy(request.policy)
        return await asyncio.to_thread(self._versions.lineage, request.policy_version)

    async def Promote(
        self, request: learner_pb2.PromoteRequest, context: Call
    ) -> learner_pb2.PromoteResponse:
        """Make a published version the stable one."""
        self._check_policy(request.policy)
        version = await self._release.promote(request.policy_version, actor_of(request.actor))
        return learner_pb2.PromoteResponse(policy_version=version)

    async def RollBack(
        self, request: learner_pb2.RollBackRequest, context: Call
    ) -> learner_pb2.RollBackResponse:
        """Go back to an earlier version."""
        self._check_policy(request.policy)
        wanted = request.policy_version if request.HasField("policy_version") else None
        version = await self._release.roll_back(wanted, actor_of(request.actor))
        return learner_pb2.RollBackResponse(policy_version=version)

    async def Pause(
        self, request: learner_pb2.PauseRequest, context: Call
    ) -> learner_pb2.PauseResponse:
        """Stop optimizer steps; intake goes on."""
        await asyncio.to_thread(self._pause, True, actor_of(request.actor))
        return learner_pb2.PauseResponse(state=self._state())

    async def Resume(
        self, request: learner_pb2.ResumeRequest, context: Call
    ) -> learner_pb2.ResumeResponse:
        """Start steps again."""
        await asyncio.to_thread(self._pause, False, actor_of(request.actor))
        return learner_pb2.ResumeResponse(state=self._state())

    async def ForgetUser(
        self, request: learner_pb2.ForgetUserRequest, context: Call
    ) -> learner_pb2.ForgetUserResponse:
        """Delete a user's rows and events."""
        return await self._forgetting.forget_user(request.user_hash)

    async def ForgetSession(
        self, request: learner_pb2.ForgetSessionRequest, context: Call
    ) -> learner_pb2.ForgetSessionResponse:
        """Delete a session's rows, and the events of feedback on it."""
        return await self._forgetting.forget_session(request.tenant, request.session_id)

    async def GetSession(
        self, request: learner_pb2.GetSessionRequest, context: Call
    ) -> learner_pb2.GetSessionResponse:
        """Return a session's answers, what was said of them, and which versions that reached."""
        found = await asyncio.to_thread(
            sessions.of_session, self._database, self._policy, request.tenant, request.session_id
        )
        return convert.session_to_proto(found)

    async def GetFeedbackLineage(
        self, request: learner_pb2.GetFeedbackLineageRequest, context: Call
    ) -> learner_pb2.GetFeedbackLineageResponse:
        """Return which versions a feedback event reached."""
        found = await asyncio.to_thread(downstream.of_feedback, self._database, request.feedback_id)
        return convert.feedback_lineage_to_proto(found)

    async def GetUserLineage(
        self, request: learner_pb2.GetUserLineageRequest, context: Call
    ) -> learner_pb2.GetUserLineageResponse:
        """Return a user's data, and which versions it reached."""
        user_hash = token(request.user_hash, "user_hash")
        found = await asyncio.to_thread(downstream.of_user, self._database, user_hash)
        return convert.user_to_proto(found)

    async def GetSenderLineage(
        self, request: learner_pb2.GetSenderLineageRequest, context: Call
    ) -> learner_pb2.GetSenderLineageResponse:
        """Return what the feedback of an API key, a tenant or a tag trained."""
        sender = convert.sender_of(request)
        found = await asyncio.to_thread(senders.of_sender, self._database, sender)
        return convert.sender_to_proto(found)

    async def GetSignalReport(
        self, request: learner_pb2.GetSignalReportRequest, context: Call
    ) -> learner_pb2.GetSignalReportResponse:
        """Return what signals predict."""
        return await asyncio.to_thread(report, self._database)

    async def RebuildPolicy(
        self, request: learner_pb2.RebuildPolicyRequest, context: Call
    ) -> learner_pb2.RebuildPolicyResponse:
        """Train again from an earlier version, on the data that is left."""
        self._check_policy(request.policy)
        actor = actor_of(request.actor)
        match request.WhichOneof("start"):
            case "policy_version":
                return await self._rebuilding.to_version(request.policy_version, actor)
            case "before_user_hash":
                return await self._rebuilding.before_user(request.before_user_hash, actor)
            case "before_api_key" | "before_tenant":
                sender = Sender(api_key=request.before_api_key, tenant=request.before_tenant)
                return await self._rebuilding.before_sender(sender, actor)
        raise InvalidRequest("start: a version, a user, a key or a tenant", param="start")

    async def ListFeedback(
        self, request: learner_pb2.ListFeedbackRequest, context: Call
    ) -> learner_pb2.ListFeedbackResponse:
        """Return feedback with what it is about, newest first."""
        if not 0 <= request.page_size <= LARGEST_PAGE:
            raise InvalidRequest(f"page_size: 0 to {LARGEST_PAGE}", param="page_size")
        items, following = await asyncio.to_thread(
            feedback.browse,
            self._database,
            self._policy,
            convert.filters_of(request),
            limit=request.page_size or FEEDBACK_PAGE,
            before=request.before,
        )
        return learner_pb2.ListFeedbackResponse(
            feedback=map(convert.item_to_proto, items), next=following
        )

    async def ExportData(
        self, request: learner_pb2.ExportDataRequest, context: Call
    ) -> AsyncIterator[learner_pb2.ExportDataResponse]:
        """Return collected data as rows that trainers read."""
        pages = export.pages(self._database, convert.wanted_of(request))
        while (rows := await asyncio.to_thread(next, pages, None)) is not None:
            yield learner_pb2.ExportDataResponse(rows=rows)

    async def ImportData(
        self, request: learner_pb2.ImportDataRequest, context: Call
    ) -> learner_pb2.ImportDataResponse:
        """Add judgements of texts that this service did not write."""
        rows = convert.rows_of(request)
        async with self._importing:
            done = await asyncio.to_thread(self._importer.add, request.kind, rows)
        self._loop.arrived.set()
        return learner_pb2.ImportDataResponse(added=done.added, known=done.known)

    def _check_policy(self, policy: str) -> None:
        if policy not in ("", self._policy):
            raise NotFound(f"no policy {policy!r}; this learner trains {self._policy!r}")

    def _pause(self, paused: bool, actor: str) -> None:
        if paused == self._loop.paused:
            return
        self._loop.pause(paused)
        decisions.record_decision(
            self._database,
            version=versions.newest_version(self._database, ModelRole.POLICY),
            kind="pause" if paused else "resume",
            outcome="paused" if paused else "resumed",
            actor=actor or "unknown",
            now=self._clock(),
        )

    def _state(self) -> str:
        # A step in progress ends before the pause counts.
        if self._loop.paused and self._loop.state == "waiting":
            return "paused"
        return self._loop.state

    def _status(self) -> learner_pb2.GetStatusResponse:
        newest = versions.list_versions(self._database, ModelRole.POLICY, limit=1)
        reward_model = versions.list_versions(self._database, ModelRole.REWARD_MODEL, limit=1)
        last = steps.newest_step(self._database, ModelRole.POLICY)
        rows = forget_user.row_counts(self._database)
        counts: dict[str, ready.SampleCounts] = {
            name: ready.counts(self._database, name) for name in Objective
        }
        return learner_pb2.GetStatusResponse(
            state=self._state(),
            policy=self._policy,
            step=0 if last is None else last.step,
            policy_version=newest[0].version if newest else 0,
            reward_model_version=reward_model[0].version if reward_model else 0,
            samples=[
                learner_pb2.SampleCount(
                    objective=name, ready=c.ready, used=c.used, waiting=c.waiting
                )
                for name, c in counts.items()
            ],
            last_step_metrics={} if last is None else last.metrics,
            last_step_time=None if last is None else timestamp(moment(last.committed_time)),
            waiting_for=convert.waiting_for(
                state=self._state(),
                connected=self._bus.connected,
                hold=self._release.hold,
                gate=self._gate(),
                counts=counts,
            ),
            rollouts=rows["rollouts"],
            feedback_events=rows["feedback"],
            evaluation=convert.evaluation_to_proto(evaluations.newest_evaluation(self._database)),
            base_evaluation=self._versions.evaluation(0),
            progress=[
                learner_pb2.Progress(objective=p.objective, have=p.have, want=p.want)
                for p in self._loop.progress()
            ],
            next_version=self._next_version(),
            staleness=steps.staleness(self._database),
            alarms=convert.alarms_to_proto(self._watch.raised),
            retracted=convert.retracted_to_proto(version_shares.retracted_shares(self._database)),
            learns_from_comments=self._learns_from_comments,
        )

    def _next_version(self) -> learner_pb2.NextVersion | None:
        found = self._loop.next_version()
        if found is None:
            return None
        return learner_pb2.NextVersion(
            steps_done=found.steps_done,
            steps_wanted=found.steps_wanted,
            seconds_left=found.seconds_left,
            evidence=found.evidence,
        )
