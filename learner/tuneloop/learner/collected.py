"""What was collected, on the wire: feedback with its texts, traffic by version, rows of files."""

import json
import time
from collections.abc import Callable, Sequence

from tuneloop.errors import InvalidRequest
from tuneloop.feedback import FeedbackKind, FeedbackStatus
from tuneloop.learner.importing import ImportedRow
from tuneloop.learner.ledger.browsing import Filters, Item
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.exporting import Wanted
from tuneloop.learner.ledger.traffic import Traffic, traffic
from tuneloop.v1 import learner_pb2
from tuneloop.wire import feedback_to_proto, messages_to_proto

THUMBS = {"": None, "up": True, "down": False}


def filters_of(request: learner_pb2.ListFeedbackRequest) -> Filters:
    """What to list; raises `InvalidRequest`."""
    kinds, statuses = set(FeedbackKind), set(FeedbackStatus)
    for name, value, known in (
        ("kind", request.kind, {"", *kinds}),
        ("value", request.value, set(THUMBS)),
        ("status", request.status, {"", *statuses}),
    ):
        if value not in known:
            raise InvalidRequest(f"{name}: one of {', '.join(sorted(known - {''}))}", param=name)
    return Filters(
        kind=FeedbackKind(request.kind) if request.kind else None,
        up=THUMBS[request.value],
        policy_version=request.policy_version if request.HasField("policy_version") else None,
        user_hash=request.user_hash or None,
        status=FeedbackStatus(request.status) if request.status else None,
    )


def item_to_proto(item: Item) -> learner_pb2.RecordedFeedback:
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
    )


def wanted_of(request: learner_pb2.ExportDataRequest) -> Wanted:
    """What to export."""
    since = request.since
    return Wanted(
        kind=request.kind,
        policy_version=request.policy_version if request.HasField("policy_version") else None,
        since=since.seconds + since.nanos * 1e-9 if request.HasField("since") else None,
    )


def rows_of(request: learner_pb2.ImportDataRequest) -> list[ImportedRow]:
    """What to import; raises `InvalidRequest` naming the row that is no object."""
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


class LatestTraffic:
    """Traffic by version, counted anew at most every `seconds`: pages ask for it all the time."""

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
        """The figures of these versions; None for one that has answered nothing."""
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
                message = None if figures is None else traffic_to_proto(figures)
                self._known[version] = (now, message)
        return {version: self._known[version][1] for version in versions}


def traffic_to_proto(figures: Traffic) -> learner_pb2.Traffic:
    """Users' requests to a version."""
    reward = figures.reward
    return learner_pb2.Traffic(
        rollouts=figures.rollouts,
        mean_length=figures.length.value,
        length_margin=figures.length.margin,
        mean_reward=None if reward is None else reward.value,
        reward_margin=None if reward is None else reward.margin,
        thumbs_up=figures.thumbs_up,
        thumbs_down=figures.thumbs_down,
    )
