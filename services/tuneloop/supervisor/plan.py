"""Plans the commands, ports and environments of the five processes.

Variables that the user sets in the environment (such as `TUNELOOP_LEARNER_…`) go to the process
unchanged and win over the plan.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuneloop import ports
from tuneloop.errors import SettingsError
from tuneloop.gateway.keys.store import KeyFile
from tuneloop.gateway.settings import keys_wanted
from tuneloop.models.catalog import catalog
from tuneloop.supervisor import nats, output
from tuneloop.supervisor.data_dir import DataDir
from tuneloop.supervisor.gpus import GpuShares, share_gpus
from tuneloop.supervisor.probes import accepts_connections, answers_http, needs_restart, serves_grpc
from tuneloop.supervisor.process import ProcessSpec
from tuneloop.supervisor.settings import SupervisorSettings

LOCAL = "127.0.0.1"
DEFAULT_PORTS = {
    "nats": 4222,
    "nats_monitor": 8222,
    **ports.GRPC_PORTS,
    **{f"{process}_metrics": port for process, port in ports.METRICS_PORTS.items()},
}
STAGGER_BELOW_CORES = 8
"""With fewer cores learner and reward wait until generation has loaded its model."""

FIRST_STAGE, SECOND_STAGE, THIRD_STAGE = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessPlan:
    """The processes to run, and their addresses."""

    specs: tuple[ProcessSpec, ...]
    url: str
    """Of the page and the API."""
    nats_url: str
    """With its password."""
    key_needed: bool
    policy: str


def choose_ports(host: str, port: int, environment: Mapping[str, str]) -> dict[str, int]:
    """Choose a port for each process. Raises `SettingsError` if the gateway's is taken."""
    ports.require_free(host, port)
    taken = {port}
    chosen: dict[str, int] = {}
    for name, preferred in DEFAULT_PORTS.items():
        setting = port_setting(name)
        wanted = environment.get(setting)
        if wanted is None:
            chosen[name] = ports.take_port(LOCAL, preferred, taken)
            continue
        if not wanted.isdecimal() or not 1 <= int(wanted) <= 65535:
            raise SettingsError(f"{setting}={wanted!r}: must be a port, 1 to 65535", param=setting)
        ports.require_free(LOCAL, int(wanted))
        chosen[name] = int(wanted)
    return chosen


def port_setting(name: str) -> str:
    """Return the environment variable that sets one of `DEFAULT_PORTS`."""
    return f"TUNELOOP_{name.upper()}_PORT"


def make_plan(
    settings: SupervisorSettings,
    data: DataDir,
    *,
    model: Path,
    reward_model: Path,
    environment: Mapping[str, str],
) -> ProcessPlan:
    """Make the plan; `model` and `reward_model` are folders. Raises `SettingsError`."""
    refuse_tls(environment)
    binary = nats.find_binary(settings.nats_server)
    chosen = choose_ports(settings.host, settings.port, environment)
    values = process_settings(settings, data, chosen, model=model, reward_model=reward_model)
    gpus = share_gpus(model, settings.weights, environment)
    config = nats.write_config(
        data.nats,
        port=chosen["nats"],
        monitor_port=chosen["nats_monitor"],
        password=data.nats_password.read_text(),
    )
    specs = (
        ProcessSpec(
            name="nats",
            command=(str(binary), "-c", str(config)),
            environment=environment,
            probe=accepts_connections(LOCAL, chosen["nats"]),
            stage=FIRST_STAGE,
            port=chosen["nats"],
            failing=needs_restart(LOCAL, chosen["nats_monitor"], data.nats),
            is_shown=nats.is_worth_showing,
        ),
        *grpc_specs(values, chosen, environment, gpus),
        gateway_spec(settings, data, chosen, environment),
    )
    return ProcessPlan(
        specs=specs,
        url=f"http://{url_host(settings.host)}:{settings.port}",
        nats_url=nats_url(data, chosen),
        key_needed=key_needed(settings, data, environment),
        policy=settings.policy,
    )


def grpc_specs(
    values: Mapping[str, Mapping[str, str]],
    chosen: Mapping[str, int],
    environment: Mapping[str, str],
    gpus: GpuShares | None,
) -> list[ProcessSpec]:
    """Return the specs of generation, reward and learner, each with its share of the GPUs."""
    few_cores = (os.cpu_count() or 1) < STAGGER_BELOW_CORES
    # vLLM would take what the learner allocates meanwhile for its own.
    waits = few_cores or (gpus is not None and gpus.plan.is_shared)
    background = THIRD_STAGE if waits else SECOND_STAGE
    # The learner lowers its own priority, by its setting.
    options = {
        "generation": {"stage": SECOND_STAGE},
        "reward": {"stage": background, "niceness": 10},
        "learner": {"stage": background},
    }
    if gpus is not None:
        options["learner"]["ranks"] = len(gpus.plan.learner_gpus)
    shares = {} if gpus is None else gpus.settings
    variables = {} if gpus is None else gpus.variables
    return [
        service_spec(
            name,
            {**values[name], **shares.get(name, {})},
            chosen,
            {**environment, **variables.get(name, {})},
            **own,
        )
        for name, own in options.items()
    ]


def process_settings(
    settings: SupervisorSettings,
    data: DataDir,
    chosen: Mapping[str, int],
    *,
    model: Path,
    reward_model: Path,
) -> dict[str, dict[str, str]]:
    """Return the settings of generation, reward and learner, by process."""
    common = {
        "POLICY": settings.policy,
        "NATS_URL": nats_url(data, chosen),
        "GRPC_TOKEN_FILE": str(data.grpc_token),
        "WEIGHTS_URI": str(data.weights),
        "VERIFY_KEY_FILE": str(data.public_key),
    }
    base = {
        "MODEL": str(model),
        "BASE_MODEL_NAME": model_name(settings.model),
        "WEIGHTS_KIND": settings.weights.value,
    }
    reader = common | {"WEIGHTS_CACHE_DIR": str(data.weights_cache)}
    generation = reader | base | {"ENGINE": settings.engine}
    learner = common | base
    learner |= {
        "REWARD_MODEL": str(reward_model),
        "SIGNING_KEY_FILE": str(data.private_key),
        "DATA_DIR": str(data.learner),
        "GENERATION_ADDRESS": f"{LOCAL}:{chosen['generation']}",
        "REWARD_ADDRESS": f"{LOCAL}:{chosen['reward']}",
    }
    reward = reader | {"MODEL": str(reward_model)}
    return {"generation": generation, "reward": reward, "learner": learner}


def nats_url(data: DataDir, chosen: Mapping[str, int]) -> str:
    """Return the URL of the nats-server, with its password."""
    return nats.url_of(chosen["nats"], data.nats_password.read_text())


def refuse_tls(environment: Mapping[str, str]) -> None:
    """Raise `SettingsError` if a process would listen with TLS, which none here expects."""
    for name in environment:
        if name.startswith("TUNELOOP_") and "_GRPC_TLS_" in name:
            problem = f"{name}: tuneloop up runs on 127.0.0.1 without TLS; unset it"
            raise SettingsError(problem, param=name)


def service_spec(
    name: str,
    values: Mapping[str, str],
    chosen: Mapping[str, int],
    environment: Mapping[str, str],
    *,
    stage: int,
    niceness: int = 0,
    ranks: int = 1,
) -> ProcessSpec:
    """Return the spec of a gRPC service; with several `ranks`, one process on each GPU."""
    port, metrics_port = chosen[name], chosen[f"{name}_metrics"]
    listening = {"HOST": LOCAL, "PORT": str(port), "METRICS_PORT": str(metrics_port)}
    return ProcessSpec(
        name=name,
        command=main_command(name) if ranks == 1 else ranks_command(name, ranks),
        environment=with_defaults(environment, name, {**values, **listening}),
        probe=serves_grpc(LOCAL, port),
        stage=stage,
        port=port,
        metrics_port=metrics_port,
        niceness=niceness,
        is_shown=output.is_useful_line,
    )


def gateway_spec(
    settings: SupervisorSettings,
    data: DataDir,
    chosen: Mapping[str, int],
    environment: Mapping[str, str],
) -> ProcessSpec:
    """Return the spec of the gateway, at the address of `tuneloop up`."""
    values = {
        "POLICY": settings.policy,
        "NATS_URL": nats_url(data, chosen),
        "GRPC_TOKEN_FILE": str(data.grpc_token),
        "GENERATION_ADDRESS": f"{LOCAL}:{chosen['generation']}",
        "REWARD_ADDRESS": f"{LOCAL}:{chosen['reward']}",
        "LEARNER_ADDRESS": f"{LOCAL}:{chosen['learner']}",
    }
    if "TUNELOOP_GATEWAY_SECRET" not in environment:
        values["SECRET_FILE"] = str(data.gateway_secret)
    values["KEYS_FILE"] = str(data.api_keys)
    values["AUDIT_FILE"] = str(data.logs / "audit.jsonl")
    listening = {
        "TUNELOOP_GATEWAY_HOST": settings.host,
        "TUNELOOP_GATEWAY_PORT": str(settings.port),
    }
    return ProcessSpec(
        name="gateway",
        command=main_command("gateway"),
        environment=with_defaults(environment, "gateway", values) | listening,
        probe=answers_http(reachable_host(settings.host), settings.port, "/readyz"),
        stage=SECOND_STAGE,
        port=settings.port,
    )


def key_needed(settings: SupervisorSettings, data: DataDir, environment: Mapping[str, str]) -> bool:
    """Return whether callers need a key. Raises `SettingsError` if they do and there is none."""
    file = KeyFile(Path(environment.get("TUNELOOP_GATEWAY_KEYS_FILE") or data.api_keys))
    keys = file.read()
    names = ("TUNELOOP_API_KEY", "TUNELOOP_GATEWAY_API_KEY")
    in_environment = any(environment.get(name) for name in names)
    if (
        not ports.is_loopback(settings.host)
        and not in_environment
        and not any(k.is_active for k in keys)
    ):
        raise SettingsError(keys_wanted(settings.host, file.path), param="host")
    return in_environment or bool(keys)


def main_command(process: str) -> tuple[str, ...]:
    """Return the command of a process; the working directory is on its path, for user code."""
    return (sys.executable, "-c", f"from tuneloop.{process}.main import main; main()")


def ranks_command(process: str, ranks: int) -> tuple[str, ...]:
    """Return the command of a process with several ranks, under torchrun."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python")
    counts = ("--nproc-per-node", str(ranks), "--max-restarts", "3")
    return (*torchrun, *counts, *main_command(process))


def with_defaults(
    environment: Mapping[str, str], process: str, values: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment of a process: the user's, over `values`, over common defaults."""
    own = {f"TUNELOOP_{process.upper()}_{name}": value for name, value in values.items()}
    quiet = {
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        # Such a warning takes two lines, of which the second is source code.
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }
    return quiet | own | dict(environment)


def model_name(reference: str) -> str:
    """Return a model's name for manifests, which is never a path of this machine."""
    if reference in catalog or not Path(reference).expanduser().is_dir():
        return reference
    return Path(reference).expanduser().resolve().name


def reachable_host(host: str) -> str:
    """Return an address at which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": LOCAL, "::": "::1", "": LOCAL}.get(host, host)  # noqa: S104


def url_host(host: str) -> str:
    """Return `host` as written in a URL."""
    host = reachable_host(host)
    return f"[{host}]" if ":" in host else host
