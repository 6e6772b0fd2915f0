"""Versions as the service describes them."""

from pathlib import Path

from support.learner_events import make_rollout
from support.learner_parts import Parts

from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.service.versions import VersionReports


def test_the_base_model_is_described_as_the_list_has_it(tmp_path: Path) -> None:
    parts = Parts(folder=tmp_path)
    recorder.record_rollouts(parts.database, [make_rollout("c1", version=0)], parts.clock())
    reports = VersionReports(parts.database, "tuneloop")
    [listed] = reports.list_versions(9, None).versions
    described = reports.lineage(0)
    assert described.version == listed
    assert described.version.traffic.rollouts == 1
    assert not described.uses
