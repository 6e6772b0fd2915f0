"""What is imported, and what is not: each in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

from tuneloop.learner.trainer.algorithms import (
    algorithms,
    policy_gradients,
)

HEAVY = ("torch", "vllm", "transformers", "fastapi", "uvicorn", "grpc", "nats", "sqlalchemy")


@pytest.mark.parametrize("arguments", [["--help"], ["up", "--help"], ["models", "list"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import json, sys; from tuneloop.cli.app import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit: pass\n"
        f"print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize(
    "module",
    [
        "tuneloop.gateway.settings",
        "tuneloop.generation.settings",
        "tuneloop.reward.settings",
        "tuneloop.learner.settings",
        "tuneloop.supervisor.settings",
    ],
)
def test_settings_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_are_read_without_loading_what_is_heavy() -> None:
    code = (
        "import sys, tuneloop.generation.settings, tuneloop.generation.main;"
        "print([m for m in ('torch', 'vllm', 'transformers', 'fastapi') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "[]", answer.stderr


def test_the_commands_load_nothing_heavy() -> None:
    script = (
        "import sys, tuneloop.cli.models\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_plan_can_be_loaded_and_the_registry_needs_no_torch() -> None:
    for algorithm in algorithms.values():
        if algorithm.trains_policy:
            assert callable(algorithm.load_plan())
    assert policy_gradients() == ["ppo", "grpo", "rloo"]
    code = (
        "import sys, tuneloop.learner.trainer.algorithms; "
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_traces_that_are_off_import_nothing() -> None:
    """Nor does anything else of the edge and of the loop: `opentelemetry` need not be there."""
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from tuneloop import tracing\n"
        "import tuneloop.gateway.app, tuneloop.generation.servicer, tuneloop.learner.loop\n"
        "tracing.start('gateway')\n"
        "with tracing.span('x', attributes={'a': 1}): tracing.annotate({'b': 2})\n"
        "assert tracing.span('x') is tracing.span('y')\n"
        "assert (tracing.traceparent(), tracing.ids(), tracing.is_on()) == ('', ('', ''), False)\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
