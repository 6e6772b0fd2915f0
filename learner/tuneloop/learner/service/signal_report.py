"""What signals predict, as a message."""

from tuneloop.learner.guards.signals import Calibration, KindReport, calibrate
from tuneloop.learner.ledger.accounting import steps
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.queue.signals import behaviors
from tuneloop.learner.samples import Objective
from tuneloop.learner.stats.intervals import Estimate
from tuneloop.v1 import learner_pb2


def report(database: Database) -> learner_pb2.GetSignalReportResponse:
    """Find out what the latest signals predict; blocks."""
    found = behaviors(database)
    calibration = calibrate(found)
    return learner_pb2.GetSignalReportResponse(
        kinds=[kind_to_proto(calibration, kind) for kind in calibration.reports],
        base=calibration.base,
        answers=len(found),
        rated=sum(behavior.up is not None for behavior in found),
        learned=steps.used_samples(database, Objective.SIGNALS),
    )


def kind_to_proto(calibration: Calibration, kind: KindReport) -> learner_pb2.SignalKindReport:
    """One kind of signal."""
    return learner_pb2.SignalKindReport(
        kind=kind.kind,
        count=kind.count,
        rated=kind.rated,
        up_with=share_to_proto(kind.up_with),
        up_without=share_to_proto(kind.up_without),
        gain=kind.gain,
        gain_low=kind.gain_low,
        used=kind.used,
        reason=kind.reason,
        chance=calibration.chance({kind.kind: 1.0}) if kind.used else None,
    )


def share_to_proto(share: Estimate | None) -> learner_pb2.ShareWithInterval | None:
    """A share with its interval; None without any thumbs."""
    if share is None:
        return None
    return learner_pb2.ShareWithInterval(value=share.value, low=share.low, high=share.high)
