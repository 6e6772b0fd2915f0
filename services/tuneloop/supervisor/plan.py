"""What to run: the commands, ports and environments of the five processes.

What the user sets in the environment (`TUNELOOP_LEARNER_…`, say) goes to the process unchanged and
wins over what is worked out here.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuneloop import ports
from tuneloop.errors import SettingsError
from tuneloop.gateway.keys.store import KeyFile
from tuneloop.gateway.settings import is_loopback, keys_wanted
from tuneloop.models.catalog import catalog
from tuneloop.supervisor import nats, output
from tuneloop.supervisor.data_dir import DataDir
from tuneloop.supervisor.probes import answers_http, can_be_cured, listens, serves_grpc
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
"""On fewer cores the learner and the reward service wait until generation has loaded its model."""
GPU_SHARE_OF_GENERATION = "0.5"
"""On one machine the learner trains on the same GPU."""

FIRST_STAGE, SECOND_STAGE, THIRD_STAGE = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessPlan:
    """What to run, and how it is reached."""

    specs: tuple[ProcessSpec, ...]
    url: str
    """Of the page and the API."""
    nats_url: str
    key_needed: bool
    policy: str


def choose_ports(host: str, port: int, environment: Mapping[str, str]) -> dict[str, int]:
    """A port for each process. Raises `SettingsError` when the gateway's is taken."""
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
    """The environment variable that fixes one of `DEFAULT_PORTS`."""
    return f"TUNELOOP_{name.upper()}_PORT"


def make_plan(
    settings: SupervisorSettings,
    data: DataDir,
    *,
    model: Path,
    reward_model: Path,
    environment: Mapping[str, str],
) -> ProcessPlan:
    """Work everything out; `model` and `reward_model` are folders. Raises `SettingsError`."""
    refuse_tls(environment)
    binary = nats.find_binary(settings.nats_server)
    chosen = choose_ports(settings.host, settings.port, environment)
    nats_url = f"nats://{LOCAL}:{chosen['nats']}"
    common = {
        "POLICY": settings.policy,
        "NATS_URL": nats_url,
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
    if shutil.which("nvidia-smi"):
        generation["GPU_MEMORY_UTILIZATION"] = GPU_SHARE_OF_GENERATION
    reward = reader | {"MODEL": str(reward_model)}
    learner = common | base
    learner |= {
        "REWARD_MODEL": str(reward_model),
        "SIGNING_KEY_FILE": str(data.private_key),
        "DATA_DIR": str(data.learner),
        "GENERATION_ADDRESS": f"{LOCAL}:{chosen['generation']}",
        "REWARD_ADDRESS": f"{LOCAL}:{chosen['reward']}",
    }
    config = nats.write_config(data.nats, port=chosen["nats"], monitor_port=chosen["nats_monitor"])
    background = THIRD_STAGE if (os.cpu_count() or 1) < STAGGER_BELOW_CORES else SECOND_STAGE
    specs = (
        ProcessSpec(
            name="nats",
            command=(str(binary), "-c", str(config)),
            environment=environment,
            probe=listens(LOCAL, chosen["nats"]),
            stage=FIRST_STAGE,
            port=chosen["nats"],
            ailing=can_be_cured(LOCAL, chosen["nats_monitor"], data.nats),
            shown=nats.is_worth_showing,
        ),
        service("generation", generation, chosen, environment, stage=SECOND_STAGE),
        service("reward", reward, chosen, environment, stage=background, niceness=10),
        # The learner lowers its own priority, by its setting.
        service("learner", learner, chosen, environment, stage=background),
        gateway(settings, data, chosen, nats_url, environment),
    )
    return ProcessPlan(
        specs=specs,
        url=f"http://{url_host(settings.host)}:{settings.port}",
        nats_url=nats_url,
        key_needed=key_needed(settings, data, environment),
        policy=settings.policy,
    )


def refuse_tls(environment: Mapping[str, str]) -> None:
    """Raise `SettingsError` where a process would listen with TLS, which none here expects."""
    for name in environment:
        if name.startswith("TUNELOOP_") and "_GRPC_TLS_" in name:
            problem = f"{name}: the processes of tuneloop up reach each other on 127.0.0.1, no TLS"
            raise SettingsError(problem, param=name)


def service(
    name: str,
    values: Mapping[str, str],
    chosen: Mapping[str, int],
    environment: Mapping[str, str],
    *,
    stage: int,
    niceness: int = 0,
) -> ProcessSpec:
    """A gRPC service with its settings."""
    port, metrics_port = chosen[name], chosen[f"{name}_metrics"]
    listening = {"HOST": LOCAL, "PORT": str(port), "METRICS_PORT": str(metrics_port)}
    return ProcessSpec(
        name=name,
        command=python_main(name),
        environment=with_defaults(environment, name, {**values, **listening}),
        probe=serves_grpc(LOCAL, port),
        stage=stage,
        port=port,
        metrics_port=metrics_port,
        niceness=niceness,
        shown=output.is_useful_line,
    )


def gateway(
    settings: SupervisorSettings,
    data: DataDir,
    chosen: Mapping[str, int],
    nats_url: str,
    environment: Mapping[str, str],
) -> ProcessSpec:
    """The gateway, where `up` was told to have it."""
    values = {
        "POLICY": settings.policy,
        "NATS_URL": nats_url,
        "GENERATION_ADDRESS": f"{LOCAL}:{chosen['generation']}",
        "REWARD_ADDRESS": f"{LOCAL}:{chosen['reward']}",
        "LEARNER_ADDRESS": f"{LOCAL}:{chosen['learner']}",
    }
    if "TUNELOOP_GATEWAY_SECRET" not in environment:
        values["SECRET_FILE"] = str(data.gateway_secret)
    values["KEYS_FILE"] = str(data.api_keys)
    listening = {
        "TUNELOOP_GATEWAY_HOST": settings.host,
        "TUNELOOP_GATEWAY_PORT": str(settings.port),
    }
    return ProcessSpec(
        name="gateway",
        command=python_main("gateway"),
        environment=with_defaults(environment, "gateway", values) | listening,
        probe=answers_http(reachable(settings.host), settings.port, "/readyz"),
        stage=SECOND_STAGE,
        port=settings.port,
    )


def key_needed(settings: SupervisorSettings, data: DataDir, environment: Mapping[str, str]) -> bool:
    """Whether callers need a key. Raises `SettingsError` where they do and there is none."""
    file = KeyFile(Path(environment.get("TUNELOOP_GATEWAY_KEYS_FILE") or data.api_keys))
    keys = file.read()
    names = ("TUNELOOP_API_KEY", "TUNELOOP_GATEWAY_API_KEY")
    in_environment = any(environment.get(name) for name in names)
    if not is_loopback(settings.host) and not in_environment and not any(k.active for k in keys):
        raise SettingsError(keys_wanted(settings.host, file.path), param="host")
    return in_environment or bool(keys)


def python_main(process: str) -> tuple[str, ...]:
    """The command of one of our processes; the current folder is on its path, for user's code."""
    return (sys.executable, "-c", f"from tuneloop.{process}.main import main; main()")


def with_defaults(
    environment: Mapping[str, str], process: str, values: Mapping[str, str]
) -> dict[str, str]:
    """The environment of a process: the user's, over `values`, over what suits any of them."""
    own = {f"TUNELOOP_{process.upper()}_{name}": value for name, value in values.items()}
    quiet = {
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        # A warning of this kind is two lines, of which the second is source code.
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }
    return quiet | own | dict(environment)


def model_name(reference: str) -> str:
    """What to call a model in manifests: a name, never a path of this machine."""
    if reference in catalog or not Path(reference).expanduser().is_dir():
        return reference
    return Path(reference).expanduser().resolve().name


def reachable(host: str) -> str:
    """An address by which this machine reaches what listens on `host`."""
    return {"0.0.0.0": LOCAL, "::": "::1", "": LOCAL}.get(host, host)  # noqa: S104


def url_host(host: str) -> str:
    """`host` as it is spelled in a URL."""
    host = reachable(host)
    return f"[{host}]" if ":" in host else host
