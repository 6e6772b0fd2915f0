"""A whole service of tiny models, as `tuneloop up` starts it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.e2e_client import ServeTiny, User

from tuneloop.supervisor.child import ServiceChild


@pytest.fixture(scope="module")
def serve_tiny(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_policy: Path,
    tiny_reward_model: Path,
    free_port_of_module: int,
) -> ServeTiny:
    """Start a service in a block, with an environment and more arguments; it is ready there."""

    @contextmanager
    def serve(
        name: str, environment: Mapping[str, str], *arguments: str, engine: str = "transformers"
    ) -> Iterator[User]:
        service = ServiceChild(
            tmp_path_factory.mktemp(name),
            port=free_port_of_module,
            arguments=[
                *("--model", str(tiny_policy), "--reward-model", str(tiny_reward_model)),
                *("--engine", engine, *arguments),
            ],
            environment=environment,
        )
        with service:
            service.wait_until_ready()
            yield User(service)

    return serve
