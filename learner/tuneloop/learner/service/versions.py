"""Versions of the policy as messages: with their evaluation, their traffic and their decisions."""

import time
from collections.abc import Callable, Sequence

from tuneloop.learner.ledger.accounting import decisions, lineage, versions
from tuneloop.learner.ledger.accounting.decisions import Decision
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.reports import evaluations
from tuneloop.learner.ledger.reports.traffic import traffic
from tuneloop.learner.samples import ModelRole
from tuneloop.learner.service import convert
from tuneloop.policies import ReleaseState
from tuneloop.v1 import learner_pb2


class LatestTraffic:
    """Traffic by version, counted at most every `seconds`: pages ask for it all the time."""

    def __init__(
        self,
        database: Database,
        *,
        seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._seconds = seconds
        self._clock = clock
        self._known: dict[int, tuple[float, learner_pb2.Traffic | None]] = {}

    def of(self, versions: Sequence[int]) -> dict[int, learner_pb2.Traffic | None]:
        """Return the figures of these versions; None for one that answered nothing."""
        now = self._clock()
        old = [
            version
            for version in versions
            if now - self._known.get(version, (float("-inf"), None))[0] >= self._seconds
        ]
        if old:
            found = traffic(self._database, old)
            for version in old:
                figures = found.get(version)
                message = None if figures is None else convert.traffic_to_proto(figures)
                self._known[version] = (now, message)
        return {version: self._known[version][1] for version in versions}


class VersionReports:
    """Describes versions of one policy."""

    def __init__(self, database: Database, policy: str) -> None:
        self._database = database
        self._policy = policy
        self._traffic = LatestTraffic(database)

    def evaluation(self, version: int) -> learner_pb2.Evaluation | None:
        """Return how a version answers the eval prompts, if it did."""
        return convert.evaluation_to_proto(evaluations.evaluate(self._database, version))

    def list_versions(
        self, limit: int, before: int | None
    ) -> learner_pb2.ListPolicyVersionsResponse:
        """Return at most `limit` versions below `before`, newest first, the base model last."""
        found = versions.list_versions(self._database, ModelRole.POLICY, limit=limit, before=before)
        figures = self._traffic.of([*(version.version for version in found), 0])
        listed = [
            convert.version_to_proto(
                version,
                self.evaluation(version.version),
                figures[version.version],
                [convert.decision_to_proto(d) for d in self._decisions(version.version)],
            )
            for version in found
        ]
        if len(found) < limit and before != 0:
            listed.append(self._base(figures[0], with_numbers=False))
        return learner_pb2.ListPolicyVersionsResponse(versions=listed)

    def _base(
        self, figures: learner_pb2.Traffic | None, *, with_numbers: bool
    ) -> learner_pb2.PolicyVersion:
        """Return version 0: the base model, which was never published."""
        stable = versions.stable_version(self._database, ModelRole.POLICY) is None
        return learner_pb2.PolicyVersion(
            policy=self._policy,
            state=(ReleaseState.STABLE if stable else ReleaseState.RETIRED).value,
            evaluation=self.evaluation(0),
            traffic=figures,
            decisions=[
                convert.decision_to_proto(d, with_numbers=with_numbers) for d in self._decisions(0)
            ],
        )

    def _decisions(self, version: int) -> list[Decision]:
        return decisions.of_version(self._database, ModelRole.POLICY, version)

    def lineage(self, number: int) -> learner_pb2.GetLineageResponse:
        """Return what made a version, which is nothing for version 0; raises `NotFound`."""
        if number == 0:
            base = self._base(self._traffic.of([0])[0], with_numbers=True)
            return learner_pb2.GetLineageResponse(version=base, settings_json="{}")
        version = versions.get_version(self._database, ModelRole.POLICY, number)
        return learner_pb2.GetLineageResponse(
            version=convert.version_to_proto(
                version,
                self.evaluation(number),
                self._traffic.of([number])[number],
                [convert.decision_to_proto(d, with_numbers=True) for d in self._decisions(number)],
            ),
            ancestors=lineage.ancestors(self._database, ModelRole.POLICY, number),
            uses=convert.uses_to_proto(lineage.uses_of(self._database, ModelRole.POLICY, number)),
            settings_json=version.settings,
        )
