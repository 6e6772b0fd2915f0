"""The real gateway and generation service, with a tiny model that follows grammars."""

from collections.abc import Iterator

import pytest
from support.clients_stack import ClientStack, running_stack
from support.tiny_models import make_obliging_policy


@pytest.fixture(
    scope="module",
    params=[
        "transformers",
        pytest.param("vllm", marks=[pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(900)]),
    ],
)
def services(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClientStack]:
    root = tmp_path_factory.mktemp("clients")
    model = make_obliging_policy(root / "model")
    with running_stack(model, root, request.param) as running:
        yield running
