"""Fakes of the three services behind the gateway."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from tuneloop.errors import InvalidRequest, NotFound, TuneloopError
from tuneloop.gateway.completion_ids import CompletionIds
from tuneloop.rollouts import choice_id
from tuneloop.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    learner_pb2,
    learner_pb2_grpc,
    reward_pb2,
    reward_pb2_grpc,
    rollout_pb2,
)

SECRET = "a secret for tests only"
IDS = CompletionIds(SECRET.encode())


@dataclass
class FakeGeneration(generation_pb2_grpc.GenerationServiceServicer):
    """Streams `pieces` as one token each, with whatever goes wrong on the way."""

    pieces: tuple[str, ...] = ("Hel", "lo, ", "wörld ", "\u2028", "👋")
    thoughts: tuple[str, ...] = ()
    """Streamed before them, in the same way."""
    policy_version: int = 3
    loaded_versions: tuple[int, ...] = ()
    """Other versions that can be asked for by number."""
    endings: tuple[str, ...] = ()
    """The last piece of each choice, by which they differ."""
    canary: tuple[int, float, bool] | None = None
    """Version, share, whether it is loaded."""
    delay: float = 0.0
    first_delay: float = 0.0
    fail: TuneloopError | None = None
    fail_after: int = 0
    """Pieces before the failure."""
    finish_reason: int = rollout_pb2.FINISH_REASON_STOP
    stop_sequence: str = ""
    without_final: bool = False
    requests: list[generation_pb2.GenerateRequest] = field(default_factory=list)
    choices: list[generation_pb2.ChooseCandidateRequest] = field(default_factory=list)
    """What was told of candidates."""
    counted: list[generation_pb2.CountTokensRequest] = field(default_factory=list)
    """Conversations whose tokens were asked for."""
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    produced: int = 0

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        try:
            await asyncio.sleep(self.first_delay)
            for thought in self.thoughts:
                for index in range(request.sampling.n):
                    delta = self.delta(request, index, "")
                    delta.reasoning = thought
                    yield generation_pb2.GenerateResponse(delta=delta)
                await asyncio.sleep(self.delay)
            for position, piece in enumerate(self.pieces):
                if self.fail is not None and position == self.fail_after:
                    raise self.fail
                for index in range(request.sampling.n):
                    yield generation_pb2.GenerateResponse(delta=self.delta(request, index, piece))
                self.produced += 1
                await asyncio.sleep(self.delay)
            for index, ending in enumerate(self.endings[: request.sampling.n]):
                yield generation_pb2.GenerateResponse(delta=self.delta(request, index, ending))
            if self.without_final:
                return
            for index in range(request.sampling.n):
                yield generation_pb2.GenerateResponse(final=self.final(request, index))
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def delta(self, request: Any, index: int, piece: str) -> Any:
        delta = generation_pb2.GenerateDelta(
            index=index, text=piece, token_ids=[7], policy_version=self.version_for(request)
        )
        if request.sampling.HasField("top_logprobs"):
            token = generation_pb2.TokenLogprob(token_id=7, token=piece, logprob=-0.5)
            other = generation_pb2.TokenLogprob(token_id=8, token="x", logprob=float("-inf"))
            top = [token, other][: request.sampling.top_logprobs]
            delta.logprobs.append(generation_pb2.PositionLogprobs(chosen=token, top=top))
        return delta

    def final(self, request: Any, index: int) -> Any:
        tokens = len(self.thoughts) + len(self.pieces) + bool(self.endings)
        return generation_pb2.GenerateFinal(
            index=index,
            completion_id=choice_id(request.completion_id, index),
            token_ids=[7] * tokens,
            generation_logprobs=[-0.5] * tokens,
            finish_reason=self.finish_reason,
            usage=generation_pb2.Usage(prompt_tokens=11, completion_tokens=tokens),
            policy_version=self.version_for(request),
            stop_sequence=self.stop_sequence,
            reasoning_tokens=len(self.thoughts),
            policy_version_spans=[
                rollout_pb2.PolicyVersionSpan(
                    policy_version=self.version_for(request), start=0, end=tokens
                )
            ],
        )

    def version_for(self, request: Any) -> int:
        asked = request.HasField("policy_version")
        return request.policy_version if asked else self.policy_version

    def policy(self) -> Any:
        policy = generation_pb2.Policy(
            name="tuneloop",
            policy_version=self.policy_version,
            base_model="tiny",
            weights_kind="lora",
            max_model_len=512,
            engine="fake",
            loaded_versions=[
                generation_pb2.LoadedVersion(policy_version=version)
                for version in sorted({self.policy_version, *self.loaded_versions})
            ],
        )
        policy.activated_time.FromSeconds(1_700_000_000)
        if self.canary is not None:
            version, share, loaded = self.canary
            policy.canary.policy_version = version
            policy.canary.share = share
            policy.canary.loaded = loaded
        return policy

    async def ChooseCandidate(self, request: Any, context: Any) -> Any:
        self.choices.append(request)
        if self.fail is not None:
            raise self.fail
        return generation_pb2.ChooseCandidateResponse()

    async def CountTokens(self, request: Any, context: Any) -> Any:
        self.counted.append(request)
        if self.fail is not None:
            raise self.fail
        return generation_pb2.CountTokensResponse(prompt_tokens=11)

    async def GetPolicy(self, request: Any, context: Any) -> Any:
        if request.policy not in ("", "tuneloop"):
            raise NotFound(f"no policy {request.policy!r}", param="policy")
        return generation_pb2.GetPolicyResponse(policy=self.policy())

    async def ListPolicies(self, request: Any, context: Any) -> Any:
        return generation_pb2.ListPoliciesResponse(policies=[self.policy()])


@dataclass
class FakeReward(reward_pb2_grpc.RewardServiceServicer):
    """Scores a completion with its length; an empty one cannot be scored."""

    requests: list[Any] = field(default_factory=list)
    informative: bool = True
    delay: float = 0.0
    fail: TuneloopError | None = None

    async def ScoreRollouts(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        await asyncio.sleep(self.delay)
        if self.fail is not None:
            raise self.fail
        scores = []
        for text in request.completions:
            score = float(len(text)) if text else None
            result = reward_pb2.ScorerResult(
                scorer="length", score=score, weight=1.0, informative=self.informative
            )
            scores.append(reward_pb2.Score(reward=score, results=[result]))
        return reward_pb2.ScoreRolloutsResponse(scores=scores, reward_model_version=2)


@dataclass
class FakeLearner(learner_pb2_grpc.LearnerServiceServicer):
    """Three versions, a status, and a record of what was asked of it."""

    stable: int = 3
    state: str = "waiting"
    newest: int = 3
    kto_ready: int = 4
    calls: list[Any] = field(default_factory=list)
    traffic: dict[int, learner_pb2.Traffic] = field(default_factory=dict)
    recorded: list[learner_pb2.RecordedFeedback] = field(default_factory=list)
    """What the ledger has, newest first."""
    effects: list[learner_pb2.Effect] = field(default_factory=list)
    """What learning from any feedback changed; while empty only `fb-1` is known."""
    learns_from_comments: bool = False
    refusal: TuneloopError | None = None
    """Of a promotion."""
    rows: list[str] = field(default_factory=lambda: ['{"prompt":"a","completion":"b"}'] * 3)
    """What is exported."""

    def version(self, number: int) -> Any:
        version = learner_pb2.PolicyVersion(
            policy="tuneloop",
            policy_version=number,
            parent_version=max(0, number - 1),
            state="stable" if number == self.stable else "retired",
            manifest_json='{"algorithms": ["kto"], "metrics": {"loss": 0.5}, '
            '"data": {"samples": {"kto": 16}}}',
        )
        version.created_time.FromSeconds(1_700_000_000 + number)
        if number == self.stable:
            decision = version.decisions.add(
                kind="gate", outcome="pass", reason="within all bounds", actor="gate"
            )
            decision.numbers_json = (
                '{"change": 0.125, "candidate": {"kl": 0.5}, "items": {"abilities": {'
                '"item": ["facts: 1+1?", "facts: 2+2?"], "candidate": [0.75, 0.25], '
                '"stable": [0.75, null], "anchor": [0.5, 0.75], "left_out": 0}}}'
            )
            decision.decided_time.FromSeconds(1_700_000_100 + number)
        if number in self.traffic:
            version.traffic.CopyFrom(self.traffic[number])
        if number == self.stable:
            version.evaluation.CopyFrom(
                learner_pb2.Evaluation(
                    policy_version=number, prompts=4, scored=3, mean_reward=0.5, mean_length=12.0
                )
            )
        return version

    async def GetStatus(self, request: Any, context: Any) -> Any:
        count = learner_pb2.SampleCount(objective="kto", ready=self.kto_ready, used=9, waiting=1)
        return learner_pb2.GetStatusResponse(
            state=self.state,
            policy="tuneloop",
            step=5,
            policy_version=self.stable,
            samples=[count],
            last_step_metrics={"loss": 0.25},
            waiting_for="12 more samples",
            rollouts=30,
            feedback_events=13,
            learns_from_comments=self.learns_from_comments,
            progress=[learner_pb2.Progress(objective="judgements", have=self.kto_ready, want=16)],
            next_version=learner_pb2.NextVersion(
                steps_done=1, steps_wanted=2, seconds_left=4.5, evidence=1.0
            ),
        )

    async def ListPolicyVersions(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        newest = request.before_version - 1 if request.HasField("before_version") else self.newest
        numbers = range(newest, 0, -1)[: request.page_size or 100]
        return learner_pb2.ListPolicyVersionsResponse(versions=[self.version(n) for n in numbers])

    async def GetLineage(self, request: Any, context: Any) -> Any:
        if not 0 < request.policy_version <= 3:
            raise NotFound(f"no version {request.policy_version}", param="policy_version")
        use = learner_pb2.SampleUse(sample_id="fb-1", objective="kto", step=4)
        return learner_pb2.GetLineageResponse(
            version=self.version(request.policy_version),
            ancestors=range(request.policy_version - 1, -1, -1),
            uses=[use],
        )

    async def Promote(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        if self.refusal is not None:
            raise self.refusal
        self.stable = request.policy_version
        return learner_pb2.PromoteResponse(policy_version=self.stable)

    async def RollBack(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        back_to = request.policy_version if request.HasField("policy_version") else self.stable - 1
        self.stable = back_to
        return learner_pb2.RollBackResponse(policy_version=back_to)

    async def Pause(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        self.state = "paused"
        return learner_pb2.PauseResponse(state=self.state)

    async def Resume(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        self.state = "waiting"
        return learner_pb2.ResumeResponse(state=self.state)

    async def ListFeedback(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        if request.before and not request.before.isdecimal():
            raise InvalidRequest("before: not a `next` of this list", param="before")
        start = int(request.before or 0)
        found = [
            recorded
            for recorded in self.recorded
            if request.kind in ("", recorded.feedback.WhichOneof("judgement"))
            and request.feedback_id in ("", recorded.feedback.event_id)
            and request.status in ("", recorded.status)
        ]
        page = found[start : start + (request.page_size or 50)]
        end = start + len(page)
        following = str(end) if end < len(found) else ""
        return learner_pb2.ListFeedbackResponse(feedback=page, next=following)

    async def ExportData(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.calls.append(request)
        for row in self.rows:
            yield learner_pb2.ExportDataResponse(rows=[row])

    async def ImportData(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        return learner_pb2.ImportDataResponse(added=len(request.rows), known=0)

    async def ForgetUser(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        return learner_pb2.ForgetUserResponse(
            rollouts_removed=2, feedback_removed=1, events_purged=3, policy_versions=[1]
        )

    async def ForgetSession(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        return learner_pb2.ForgetSessionResponse(
            rollouts_removed=3, feedback_removed=2, events_purged=2, policy_versions=[2]
        )

    async def GetSession(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        turn = learner_pb2.SessionTurn(
            completion_id="c1", policy_version=1, feedback_ids=["fb-1"], used_by_versions=[2]
        )
        turn.finished_time.FromSeconds(1_700_000_000)
        return learner_pb2.GetSessionResponse(
            turns=[turn],
            feedback=self.recorded,
            policy=learner_pb2.Reach(direct=[2], descended=[3]),
            rebuild_from=1,
        )

    async def GetFeedbackLineage(self, request: Any, context: Any) -> Any:
        if request.feedback_id != "fb-1" and not self.effects:
            raise NotFound(f"no feedback {request.feedback_id!r}", param="feedback_id")
        sample = learner_pb2.SampleLineage(
            sample_id="fb-1", objective="kto", state="used", steps=[3, 5]
        )
        answer = learner_pb2.GetFeedbackLineageResponse(
            feedback_id="fb-1",
            kind="thumb",
            status="accepted",
            completion_ids=["c1"],
            samples=[sample],
            policy=learner_pb2.Reach(
                direct=sorted({e.policy_version for e in self.effects}) or [2], descended=[3, 4]
            ),
            effects=self.effects,
        )
        answer.accepted_time.FromSeconds(1_700_000_000)
        return answer

    async def GetUserLineage(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        record = learner_pb2.ForgottenRecord(rollouts=2, feedback=1, policy_versions=[2])
        record.time.FromSeconds(1_700_000_000)
        return learner_pb2.GetUserLineageResponse(
            rollouts=4,
            feedback=3,
            signals=5,
            samples={"used": 2, "open": 1},
            policy=learner_pb2.Reach(direct=[2]),
            rebuild_from=1,
            forgotten=[record],
        )

    async def GetSignalReport(self, request: Any, context: Any) -> Any:
        share = learner_pb2.ShareWithInterval(value=0.9, low=0.8, high=0.95)
        copied = learner_pb2.SignalKindReport(
            kind="copied",
            count=400,
            rated=40,
            up_with=share,
            up_without=share,
            gain=0.06,
            gain_low=0.02,
            used=True,
            reason="foretells thumbs",
            chance=0.88,
        )
        edited = learner_pb2.SignalKindReport(kind="edited", count=3, reason="0 of 30 thumbs")
        return learner_pb2.GetSignalReportResponse(
            kinds=[copied, edited], base=0.7, answers=1000, rated=80, learned=12
        )

    async def GetSenderLineage(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        share = learner_pb2.SenderShare(policy_version=2, samples=3, share=0.75)
        return learner_pb2.GetSenderLineageResponse(
            feedback=4,
            retracted=1,
            users=2,
            samples={"used": 3, "retracted": 1},
            policy=learner_pb2.Reach(direct=[2], descended=[3]),
            versions=[share],
            rebuild_from=1,
        )

    async def RebuildPolicy(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        return learner_pb2.RebuildPolicyResponse(
            policy_version=1,
            restored_version=0,
            left_behind=[2, 3],
            samples_put_back=9,
            feedback_retracted=4,
        )
