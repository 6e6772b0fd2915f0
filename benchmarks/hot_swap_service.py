"""The generation service for `benchmarks.hot_swap`: its process, a nats-server, a weight store."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateway_edge import process
from benchmarks.hot_swap_versions import Publication
from benchmarks.loop import free_port
from tuneloop.policies import WeightsKind, WeightsReference
from tuneloop.supervisor import nats

CACHED_FULL_VERSIONS = 2
"""What generation keeps on disk: swapping between more of them, each is fetched anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A generation service that starts, and what it may be told to serve."""

    kind: WeightsKind
    address: str
    metrics_url: str
    nats_url: str
    versions: Sequence[WeightsReference]


@contextlib.contextmanager
def service(model: Path, kind: WeightsKind, *, engine: str, versions: int) -> Iterator[Service]:
    """Publish versions, start the processes, stop them in the end."""
    port, metrics_port, nats_port = free_port(), free_port(), free_port()
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        publication = Publication(root, model, kind)
        references = publication.publish(versions)
        config = nats.write_config(root, port=nats_port)
        command = [str(nats.find_binary(None)), "--config", str(config)]
        stack.enter_context(process([*command, "--log", str(root / "nats.log")]))
        settings = {
            "PORT": port,
            "METRICS_PORT": metrics_port,
            "MODEL": model,
            "ENGINE": engine,
            "WEIGHTS_KIND": kind.value,
            "MAX_MODEL_LEN": 512,
            "NATS_URL": f"nats://127.0.0.1:{nats_port}",
            "WEIGHTS_URI": publication.uri,
            "WEIGHTS_CACHE_DIR": root / "cache",
            "VERIFY_KEY_FILE": publication.verify_key,
        }
        environment = {f"TUNELOOP_GENERATION_{name}": str(v) for name, v in settings.items()}
        generation = [sys.executable, "-c", "from tuneloop.generation.main import main; main()"]
        stack.enter_context(process(generation, environment | {"TUNELOOP_LOG_LEVEL": "WARNING"}))
        yield Service(
            kind=kind,
            address=f"127.0.0.1:{port}",
            metrics_url=f"http://127.0.0.1:{metrics_port}/metrics",
            nats_url=settings["NATS_URL"],
            versions=references,
        )
