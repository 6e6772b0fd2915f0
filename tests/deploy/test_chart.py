import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from jsonschema import Draft202012Validator
from support.deploy_files import (
    PROCESSES,
    ROOT,
    Dockerfile,
    Document,
    environment_of,
    one,
    pods,
    rendered,
    template,
    tool,
)

from tuneloop.bus import subjects
from tuneloop.reward.consumer import DURABLE

KUBERNETES = "1.34"
VARIANTS = {
    "as it is": (),
    "gpus": (
        'generation.accelerator="cuda"',
        "generation.gpus=1",
        'learner.accelerator="cuda"',
        "learner.gpus=4",
        'generation.nodeSelector={"gpu": "yes"}',
        'generation.tolerations=[{"key": "gpu", "operator": "Exists"}]',
    ),
    "tls": ('tls.grpcSecret="grpc"', 'tls.natsSecret="nats-tls"'),
    "small": (
        "nats.replicas=1",
        "reward.keda.enabled=false",
        "gateway.autoscaling.enabled=false",
        "gateway.ingress.enabled=false",
        "networkPolicy.enabled=false",
        "model.pull=false",
        'model.volume={"persistentVolumeClaim": {"claimName": "models", "readOnly": true}}',
    ),
    "another nats": (
        "nats.enabled=false",
        'nats.url="nats://nats.example.com:4222"',
        'reward.keda.monitoring="nats.example.com:8222"',
    ),
}
KEDA: Document = {
    # What KEDA's definition of the resource says of the fields used here.
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "keda.sh/v1alpha1"},
        "spec": {
            "required": ["scaleTargetRef", "triggers"],
            "additionalProperties": False,
            "properties": {
                "scaleTargetRef": {
                    "required": ["name"],
                    "additionalProperties": False,
                    "properties": {"name": {"type": "string"}},
                },
                "minReplicaCount": {"type": "integer"},
                "maxReplicaCount": {"type": "integer"},
                "pollingInterval": {"type": "integer"},
                "cooldownPeriod": {"type": "integer"},
                "triggers": {
                    "items": {
                        "required": ["type", "metadata"],
                        "additionalProperties": False,
                        "properties": {
                            "type": {"const": "nats-jetstream"},
                            "metadata": {
                                "required": [
                                    "natsServerMonitoringEndpoint",
                                    "account",
                                    "stream",
                                    "consumer",
                                    "lagThreshold",
                                ],
                                "additionalProperties": {"type": "string"},
                            },
                        },
                    }
                },
            },
        },
    },
}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def manifests(request: pytest.FixtureRequest) -> list[Document]:
    return rendered(*request.param)


@pytest.fixture(scope="module")
def plain() -> list[Document]:
    return rendered()


def test_every_manifest_has_the_form_that_kubernetes_takes(manifests: list[Document]) -> None:
    for document in manifests:
        if document["apiVersion"].startswith("keda.sh/"):
            Draft202012Validator(KEDA).validate(document)
            continue
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def containers(pod: Document) -> list[Document]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_every_pod_keeps_to_the_restricted_standard(manifests: list[Document]) -> None:
    for name, pod in pods(manifests).items():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in containers(pod):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["readOnlyRootFilesystem"], name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name


def test_every_process_is_probed_and_has_room_to_write(manifests: list[Document]) -> None:
    for name, pod in pods(manifests).items():
        [container] = pod["containers"]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container), name
        mounts = [mount["name"] for mount in container["volumeMounts"]]
        assert len(mounts) == len(set(mounts))
        assert "tmp" in mounts
        initial = [m["name"] for c in pod.get("initContainers", []) for m in c["volumeMounts"]]
        assert {*mounts, *initial} == {volume["name"] for volume in pod["volumes"]} | (
            {"data"} if name in ("learner", "nats") else set()
        )


def test_ports_are_those_of_the_images(manifests: list[Document]) -> None:
    dockerfile = Dockerfile()
    for process, pod in pods(manifests).items():
        if process == "nats":
            continue
        [container] = pod["containers"]
        listened = {str(port["containerPort"]) for port in container["ports"]}
        assert listened == set(dockerfile.last(process, "EXPOSE").split())
        for name, value in dockerfile.environment(process).items():
            if name.endswith(f"{process.upper()}_PORT"):
                service = one(manifests, "Service", process)["spec"]["ports"][0]
                named = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
                assert named[service["targetPort"]] == value
                scraped = dockerfile.environment(process).get(
                    f"TUNELOOP_{process.upper()}_METRICS_PORT", value
                )
                kind = "StatefulSet" if process == "learner" else "Deployment"
                labels = one(manifests, kind, process)["spec"]["template"]["metadata"]
                assert labels["annotations"]["prometheus.io/port"] == scraped


def test_a_call_goes_to_every_replica(manifests: list[Document]) -> None:
    addresses = {
        (process, name): value
        for process, pod in pods(manifests).items()
        for name, value in environment_of(pod["containers"][0]).items()
        if name.endswith("_ADDRESS")
    }
    assert len(addresses) >= 4
    for (caller, name), value in addresses.items():
        callee = name.split("_")[2].lower()
        service = one(manifests, "Service", callee)
        port = service["spec"]["ports"][0]["port"]
        assert value == f"dns:///tuneloop-{callee}.prod.svc:{port}", caller
        assert service["spec"]["clusterIP"] == "None"


def test_what_is_called_may_be_called(plain: list[Document]) -> None:
    """Both ends of every call have a policy that allows it, and nothing else calls."""
    labels = {
        d["metadata"]["name"].removeprefix("tuneloop-"): d["spec"]["podSelector"]["matchLabels"]
        for d in plain
        if d["kind"] == "NetworkPolicy"
    }
    calls = {
        (process, name.split("_")[2].lower(), int(value.rsplit(":", 1)[1]))
        for process, pod in pods(plain).items()
        for name, value in environment_of(pod["containers"][0]).items()
        if name.endswith("_ADDRESS")
    }
    calls |= {(process, "nats", 4222) for process in PROCESSES} | {("nats", "nats", 6222)}
    for caller, callee in itertools.product(labels, labels):
        egress = one(plain, "NetworkPolicy", caller)["spec"]["egress"]
        ingress = one(plain, "NetworkPolicy", callee)["spec"]["ingress"]
        out = ports_to(egress, "to", labels[callee])
        into = ports_to(ingress, "from", labels[caller])
        wanted = {port for a, b, port in calls if (a, b) == (caller, callee)}
        assert out == into == wanted, (caller, callee)


def ports_to(rules: list[Document], side: str, labels: dict[str, str]) -> set[int]:
    return {
        port["port"]
        for rule in rules
        for peer in rule.get(side, [])
        if peer.get("podSelector", {}).get("matchLabels") == labels
        for port in rule["ports"]
    }


def test_there_is_one_learner_and_its_volume_is_its_own(plain: list[Document]) -> None:
    learner = one(plain, "StatefulSet", "learner")["spec"]
    assert learner["replicas"] == 1
    [claim] = learner["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    data = Dockerfile().environment("learner")["TUNELOOP_LEARNER_DATA_DIR"]
    [container] = learner["template"]["spec"]["containers"]
    assert {"name": "data", "mountPath": data} in container["volumeMounts"]
    assert template("learner.replicas=2").returncode != 0


def test_several_gpus_are_several_ranks() -> None:
    pod = pods(rendered('learner.accelerator="cuda"', "learner.gpus=4"))["learner"]
    [container] = pod["containers"]
    assert container["command"][0] == "torchrun"
    assert "--nproc-per-node=4" in container["command"]
    assert container["command"][-2:] == ["--module", "tuneloop.learner.main"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert container["image"].endswith("-cuda")


def test_generation_is_spread_over_its_gpus() -> None:
    for gpus, told in ((1, None), (2, "2")):
        found = pods(rendered('generation.accelerator="cuda"', f"generation.gpus={gpus}"))
        [container] = found["generation"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == gpus
        assert environment_of(container).get("TUNELOOP_GENERATION_TENSOR_PARALLEL") == told


@pytest.mark.parametrize(
    ("arguments", "memory", "gpus"),
    [
        # Processes 2·2, buffer 1.16, adapters 0.98; process 2, reward model 0.5, weights 15.26.
        (("--gpu", "h100"), {"generation": ("7Gi", "8Gi"), "learner": ("18Gi", "23Gi")}, (1, 1)),
        # Two ranks more, and everything twice but the base that one learner loads.
        (
            ("--gpu", "h100", "--tensor-parallel", "2"),
            {"generation": ("13Gi", "16Gi"), "learner": ("18Gi", "23Gi")},
            (2, 1),
        ),
        # 4 bytes of 8.81 billion weights, 12 adapters of 0.33 GiB and 3.5 GiB more.
        (("--gpu", "cpu"), {"generation": ("41Gi", "51Gi")}, (None, None)),
    ],
)
def test_the_chart_takes_the_sizes_of_a_model(
    arguments: Sequence[str], memory: Document, gpus: tuple[int | None, ...], tmp_path: Path
) -> None:
    given = ["doctor", "--plan", "--model", "qwen3-8b", "--values", "helm", *arguments]
    (tmp_path / "values.json").write_text(tool("tuneloop", *given).stdout)
    found = rendered(values=[tmp_path / "values.json"])
    deployed = pods(found)
    for process, (requested, limit) in memory.items():
        resources = deployed[process]["containers"][0]["resources"]
        assert (resources["requests"]["memory"], resources["limits"]["memory"]) == (
            requested,
            limit,
        )
        # What the chart sets otherwise stays.
        assert resources["requests"]["cpu"] == "2"
    limits = [
        deployed[p]["containers"][0]["resources"]["limits"] for p in ("generation", "learner")
    ]
    assert tuple(limit.get("nvidia.com/gpu") for limit in limits) == gpus
    [claim] = one(found, "StatefulSet", "learner")["spec"]["volumeClaimTemplates"]
    # The ledger's 2 GiB, 60 bytes of each of 87.3 million weights, and a quarter.
    assert claim["spec"]["resources"]["requests"]["storage"] == "9Gi"


@pytest.mark.parametrize("process", PROCESSES)
def test_a_pod_may_take_as_long_as_its_drain(process: str, plain: list[Document]) -> None:
    pod = pods(plain)[process]
    [container] = pod["containers"]
    prefix = f"TUNELOOP_{process.upper()}_"
    drain = int(environment_of(container)[f"{prefix}DRAIN_SECONDS"])
    hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
    waited = int(hook[1]) if hook else 0
    assert (waited > 0) == (process != "learner")
    assert pod["terminationGracePeriodSeconds"] >= waited + drain + 10


def test_reward_grows_with_the_rollouts_that_wait(plain: list[Document]) -> None:
    scaled = one(plain, "ScaledObject", "reward")["spec"]
    [trigger] = scaled["triggers"]
    assert trigger["metadata"]["stream"] == subjects.ROLLOUTS
    assert trigger["metadata"]["consumer"] == DURABLE
    assert (
        scaled["scaleTargetRef"]["name"] == one(plain, "Deployment", "reward")["metadata"]["name"]
    )
    # Two would fight over the number of replicas.
    assert "replicas" not in one(plain, "Deployment", "reward")["spec"]
    assert "replicas" not in one(plain, "Deployment", "gateway")["spec"]


def test_a_secret_goes_only_to_who_needs_it(plain: list[Document]) -> None:
    readers: dict[str, set[str]] = {}
    for process, pod in pods(plain).items():
        for volume in pod["volumes"]:
            if "secret" in volume:
                for item in volume["secret"].get("items", [{"key": "*"}]):
                    key = f"{volume['secret']['secretName']}/{item['key']}"
                    readers.setdefault(key, set()).add(process)
        for entry in pod["containers"][0].get("env", []):
            source = entry.get("valueFrom", {}).get("secretKeyRef")
            if source:
                readers.setdefault(f"{source['name']}/{source['key']}", set()).add(process)
    assert readers["tuneloop-manifest/manifest_private.pem"] == {"learner"}
    assert readers["tuneloop-ledger/password"] == {"learner"}
    assert readers["tuneloop-gateway/*"] == {"gateway"}
    for process in PROCESSES:
        assert readers[f"tuneloop-nats/{process}"] == {process, "nats"}
    assert readers["tuneloop-s3/AWS_SECRET_ACCESS_KEY"] == {"generation", "reward", "learner"}


def test_each_pod_has_a_certificate_of_its_own() -> None:
    for process, pod in pods(rendered('tls.grpcSecret="grpc"')).items():
        secrets = [v["secret"]["secretName"] for v in pod["volumes"] if v["name"] == "grpc-tls"]
        assert secrets == ([] if process == "nats" else [f"grpc-{process}"])


def test_with_tls_the_probes_of_kubernetes_are_not_used() -> None:
    for process, pod in pods(rendered('tls.grpcSecret="grpc"')).items():
        if process in ("generation", "reward", "learner"):
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                command = pod["containers"][0][probe]["exec"]["command"]
                assert command == ["python", "-m", "tuneloop.rpc.probe", process]


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ('weights.uri=""', "weights.uri"),
        ('ledger.url=""', "ledger.url"),
        ('ledger.url="mysql://x"', "ledger.url"),
        ("nats.replicas=2", "nats.replicas"),
        ("tls.grpcPlaintext=false", "tls.grpcSecret"),
        ("generation.gpus=1", "generation.gpus"),
        ('learner.release="yes"', "learner.release"),
        ("generation.replica=3", "replica"),
        ('gateway.settings={"TUNELOOP_LEARNER_RELEASE": "off"}', "TUNELOOP_LEARNER_RELEASE"),
        ("nats.enabled=false", "nats.url"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(setting: str, complaint: str) -> None:
    done = template(setting)
    assert done.returncode != 0
    assert complaint in done.stderr or complaint.replace(".", "/") in done.stderr


def test_the_linters_have_nothing_to_say() -> None:
    chart, values = "deploy/helm/tuneloop", "deploy/helm/test-values.yaml"
    for done in (
        tool("hadolint", "Dockerfile"),
        tool("helm", "lint", "--strict", "--quiet", chart, "--values", values),
    ):
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_version_is_that_of_the_project() -> None:
    import tomllib

    import yaml

    chart: dict[str, Any] = yaml.safe_load((ROOT / "deploy/helm/tuneloop/Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == project["version"]
    assert f"ARG VERSION={project['version']}" in (ROOT / "Dockerfile").read_text()
