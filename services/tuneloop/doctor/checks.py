"""All checks, in the order in which to fix their problems."""

import os
from collections.abc import Iterator, Set
from pathlib import Path

from tuneloop.doctor import machine, model_files, network, packages
from tuneloop.doctor.finding import Finding, fine, problem
from tuneloop.errors import SettingsError
from tuneloop.gateway.settings import GatewaySettings
from tuneloop.generation.settings import GenerationSettings
from tuneloop.gpus import devices
from tuneloop.redaction.redactor import RedactionSettings
from tuneloop.reward.settings import RewardSettings
from tuneloop.settings import refuse_unknown_names
from tuneloop.supervisor.settings import SupervisorSettings

NEEDS_MODEL = {"generation", "learner"}
NEEDS_REWARD_MODEL = {"reward", "learner"}


def run_checks(settings: SupervisorSettings, processes: Set[str]) -> Iterator[Finding]:
    """Check a machine that is to run these processes with these settings."""
    state = network.running_service(settings.data_dir)
    running = state is not None
    yield packages.check_python()
    redacts = {"redact"} if os.environ.get("TUNELOOP_REDACT_ENTITIES", "[]") != "[]" else set()
    yield from packages.check_packages(packages.extras_of(processes) | redacts)
    if processes != {"gateway"}:
        yield from check_accelerator(processes, running=running)
    cache_dir = settings.cache_dir.expanduser()
    if processes & NEEDS_MODEL:
        yield model_files.check_model("model", settings.model, cache_dir)
    if processes & NEEDS_REWARD_MODEL:
        yield model_files.check_model("reward model", settings.reward_model, cache_dir)
    yield from check_environment()
    if "gateway" in processes:
        yield network.check_port(settings.host, settings.port, state)
        yield network.check_keys(settings, os.environ)
    yield from network.check_inner_ports(os.environ, state)
    yield network.check_nats_binary(settings.nats_server)
    bus = os.environ.get("TUNELOOP_GATEWAY_NATS_URL")
    yield network.check_nats_server(bus if state is None else state["nats_url"])
    data_dir = settings.data_dir.expanduser().absolute()
    yield machine.check_disk("disk", data_dir, "--data-dir")
    if processes != {"gateway"}:
        yield machine.check_disk("disk", Path(cache_dir).absolute(), "TUNELOOP_CACHE_DIR")
        yield machine.check_memory(running=running)
    yield from network.check_service(state, data_dir)


def check_accelerator(processes: Set[str], *, running: bool) -> Iterator[Finding]:
    """Check the GPUs, and the builds that should match them."""
    try:
        gpus = devices.find_gpus()
    except devices.DriverError as error:
        yield machine.driver_problem(error)
        return
    yield from machine.check_gpus(gpus, running=running)
    yield from packages.check_torch(packages.torch_build(), gpus)
    if "generation" in processes:
        yield packages.check_vllm(gpu=bool(gpus))


def check_environment() -> Iterator[Finding]:
    """Check for variables that no process reads: they stop the process of their prefix."""
    wrong = False
    for settings_class in (
        *(SupervisorSettings, GatewaySettings, GenerationSettings),
        *(RewardSettings, RedactionSettings),
    ):
        try:
            refuse_unknown_names(settings_class, os.environ)
        except SettingsError as error:
            wrong = True
            yield problem("settings", error.message, f"unset {error.param}")
    if not wrong:
        names = sorted(name for name in os.environ if name.startswith("TUNELOOP_"))
        yield fine("settings", ", ".join(names) or "none set in the environment")
