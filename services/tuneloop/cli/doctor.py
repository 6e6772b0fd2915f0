"""`tuneloop doctor`: checks this machine, and says how to fix what is wrong."""

import enum
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tuneloop.cli.options import AsJson, fail
from tuneloop.cli.output import print_json, printable
from tuneloop.errors import TuneloopError
from tuneloop.models.catalog import default_policy_model
from tuneloop.policies import WeightsKind

if TYPE_CHECKING:
    from tuneloop.doctor.finding import Finding


class Process(enum.StrEnum):
    """A part of the service that a machine may run."""

    GATEWAY = "gateway"
    GENERATION = "generation"
    REWARD = "reward"
    LEARNER = "learner"


ShowPlan = Annotated[
    bool, typer.Option("--plan", help="Show what would be in the memory of GPUs, instead.")
]
GpuName = Annotated[
    str | None,
    typer.Option(
        help="With --plan: a GPU such as h100; cpu with --values.",
        show_default="those of this machine",
    ),
]
GpuCount = Annotated[
    int | None, typer.Option("--gpus", min=1, max=64, help="With --plan: how many.")
]
TensorParallel = Annotated[
    int, typer.Option(min=1, max=64, help="With --plan: GPUs that generation is spread over.")
]
Target = Literal["helm", "compose"]
Values = Annotated[
    Target | None,
    typer.Option(help="With --plan: print sizes for the chart or compose.yaml, instead."),
]
Weights = Annotated[WeightsKind, typer.Option(help="With --plan: what learning changes.")]
MARKS = {"ok": ("ok", "green"), "warning": ("note", "yellow"), "problem": ("wrong", "red")}


def doctor(
    *,
    process: Annotated[
        list[Process] | None,
        typer.Option(help="Only what this process needs; may be repeated.", show_default="all"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="As for tuneloop up.")] = None,
    reward_model: Annotated[str | None, typer.Option(help="As for tuneloop up.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="As for tuneloop up.")] = None,
    host: Annotated[str | None, typer.Option(help="As for tuneloop up.")] = None,
    port: Annotated[int | None, typer.Option(help="As for tuneloop up.")] = None,
    nats_server: Annotated[Path | None, typer.Option(help="As for tuneloop up.")] = None,
    plan: ShowPlan = False,
    gpu: GpuName = None,
    gpus: GpuCount = None,
    tensor_parallel: TensorParallel = 1,
    weights: Weights = WeightsKind.LORA,
    values: Values = None,
    as_json: AsJson = False,
) -> None:
    """Check packages, models, ports, NATS, disk, memory and GPU, and say how to fix each problem.

    The exit status is 1 if a problem would keep the service from running, or a plan does not fit.
    """
    if plan:
        show_plan(
            model or default_policy_model,
            values=values,
            as_json=as_json,
            gpu=gpu,
            gpus=gpus,
            tensor_parallel=tensor_parallel,
            weights=weights,
        )
        return
    if values is not None:
        fail("--values: give it with --plan")
    options = {
        "model": model,
        "reward_model": reward_model,
        "data_dir": data_dir,
        "host": host,
        "port": port,
        "nats_server": nats_server,
    }
    given = {name: value for name, value in options.items() if value is not None}
    findings = []
    for finding in run_checks(given, {one.value for one in process or Process}):
        findings.append(finding)
        if not as_json:
            show(finding)
    problems = sum(finding.state == "problem" for finding in findings)
    if as_json:
        print_json({"ok": not problems, "findings": [asdict(finding) for finding in findings]})
    else:
        counted = f"{problems} problem{'s' if problems > 1 else ''}."
        typer.echo(counted if problems else "Nothing is in the way.")
    if problems:
        raise typer.Exit(1)


def show_plan(
    model: str, *, values: Target | None, as_json: bool, gpu: str | None, **wanted: Any
) -> None:
    """Print a plan of GPUs' memory, or sizes for a deployment.

    The exit status is 1 if the plan does not fit.
    """
    from tuneloop.doctor.deployment import deployment_values
    from tuneloop.doctor.memory_plan import plan_for, plan_lines

    try:
        if values is not None:
            typer.echo(deployment_values(values, model, gpu=gpu, **wanted))
            return
        made = plan_for(model, gpu=gpu, **wanted)
    except TuneloopError as error:
        fail(error.message)
    if as_json:
        print_json(asdict(made))
    else:
        typer.echo("\n".join(plan_lines(made, model)))
    if made.problems:
        raise typer.Exit(1)


def run_checks(given: Mapping[str, Any], processes: Set[str]) -> Iterator["Finding"]:
    """Yield what is found; without the packages of a service only what to install."""
    from tuneloop.doctor import packages

    try:
        from tuneloop.doctor.checks import run_checks
        from tuneloop.settings import load
        from tuneloop.supervisor.settings import SupervisorSettings
    except ModuleNotFoundError as error:
        yield packages.check_python()
        yield packages.without_services(error, processes)
        return
    try:
        # A name that nothing reads is a finding here.
        settings = load(SupervisorSettings, environ={}, **given)
    except TuneloopError as error:
        fail(error.message)
    yield from run_checks(settings, processes)


def show(finding: "Finding") -> None:
    """Print a finding, and below it the remedy."""
    mark, colour = MARKS[finding.state]
    typer.echo(
        f"{typer.style(f'{mark:6}', fg=colour)} {finding.check:13} {printable(finding.found)}"
    )
    if finding.remedy is not None:
        typer.echo(f"{'':20} {typer.style('→', dim=True)} {finding.remedy}")
