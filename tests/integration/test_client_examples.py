"""Every example, run as its README says, against one gateway over fakes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.browser_page import feedback_of
from support.client_records import recorded
from support.gateway_stack import Stack
from support.node_env import FOLDER, node, npm_ci

from tuneloop.feedback import Comparison, Demonstration, Thumb

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
TEXT = "Hello, wörld \u2028👋"


def run(stack: Stack, *command: object, cwd: Path = ROOT) -> str:
    environment = os.environ | {"TUNELOOP_URL": stack.url, "TUNELOOP_API_KEY": ""}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def judgements(stack: Stack) -> list[Any]:
    return [feedback.judgement for feedback in feedback_of(stack)]


def test_curl(shared_stack: Stack) -> None:
    output = run(shared_stack, "sh", EXAMPLES / "curl.sh")
    first, _, second = (request.completion_id for request in shared_stack.generation.requests)
    assert judgements(shared_stack)[:3] == [
        Thumb(up=True),
        Comparison(chosen=second, rejected=(first,)),
        Demonstration(text="Rayleigh scattering."),
    ]
    assert "data: [DONE]" in output
    assert f'{{"id":"curl-{first}","status":"retracted"}}' in output
    assert '"policy_version":3' in output.splitlines()[-1]


def test_openai_sdk(shared_stack: Stack) -> None:
    output = run(shared_stack, sys.executable, "-m", "examples.openai_feedback")
    streamed, two = shared_stack.generation.requests
    assert judgements(shared_stack) == [
        Thumb(up=True),
        Comparison(chosen=two.completion_id, rejected=(f"{two.completion_id}.1",)),
    ]
    assert f"{TEXT}\nthumb up for {streamed.completion_id}" in output


def test_responses(shared_stack: Stack) -> None:
    output = run(shared_stack, sys.executable, "-m", "examples.responses_feedback")
    first, second = shared_stack.generation.requests
    assert [m.role for m in second.chat.messages] == ["user", "assistant", "user"]
    assert first.session_id == second.session_id == first.completion_id
    assert judgements(shared_stack) == [Thumb(up=True)]
    assert output == f"{TEXT}\n{TEXT}\nthumb up for the conversation: accepted\n"


def test_anthropic_sdk(shared_stack: Stack) -> None:
    output = run(shared_stack, sys.executable, "-m", "examples.anthropic_feedback")
    (request,) = shared_stack.generation.requests
    assert [m.role for m in request.chat.messages] == ["system", "user"]
    assert judgements(shared_stack) == [Thumb(up=True)]
    assert output == f"{TEXT}\nthumb up for {request.completion_id}: accepted\n"


@pytest.mark.slow
def test_langchain(shared_stack: Stack) -> None:
    output = run(shared_stack, sys.executable, "-m", "examples.langchain_feedback")
    assert output == f"{TEXT}\n{TEXT}\njudged both\n"
    assert shared_stack.generation.requests[0].chat.messages[0].content == "You answer in English."
    assert judgements(shared_stack) == [
        Thumb(up=True),
        Demonstration(text="A humorous poem of five lines."),
    ]


def test_grpc(shared_stack: Stack) -> None:
    address = f"127.0.0.1:{shared_stack.servers['generation'].port}"
    lines = run(shared_stack, sys.executable, "-m", "examples.grpc_client", address).split("\n")
    assert lines[0] == "tuneloop.v1.GenerationService is SERVING"
    assert lines[1:3] == [TEXT, "version 3, FINISH_REASON_STOP"]
    assert lines[3] == (
        "services: grpc.health.v1.Health, grpc.reflection.v1alpha.ServerReflection, "
        "tuneloop.v1.GenerationService"
    )
    assert lines[4] == "tiny serves version 3"


def test_node(shared_stack: Stack, tmp_path: Path) -> None:
    npm_ci()
    shutil.copy(EXAMPLES / "node_ai" / "chat.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(FOLDER / "node_modules")
    output = run(shared_stack, node(), "chat.mjs", "Hello?", cwd=tmp_path)
    (request,) = shared_stack.generation.requests
    assert request.chat.messages[0].content == "Hello?"
    assert output == f"{TEXT}\nthumb up for {request.completion_id}\n"
    assert judgements(shared_stack) == [Thumb(up=True)]


def test_the_page_about_the_client(shared_stack: Stack, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "client.md").read_text(), re.S)
    program = tmp_path / "client.py"
    program.write_text("\n".join(blocks))
    shared_stack.learner.recorded = [recorded("a", Thumb(up=False))]
    output = run(shared_stack, sys.executable, program)
    assert f"{TEXT} 3 stop" in output
    assert "a question an answer" in output
    kinds = [type(judgement).__name__ for judgement in judgements(shared_stack)]
    assert kinds == ["Thumb", "Comparison", "Thumb", "Rating", "Thumb", "Thumb"]
    assert "12 more samples" in output
    assert shared_stack.learner.stable == 1


def test_the_page_about_the_api(shared_stack: Stack, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    # One of responses, one of messages.
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        program = tmp_path / f"example_{number}.py"
        program.write_text(block.replace("http://127.0.0.1:8000", shared_stack.url))
        run(shared_stack, sys.executable, program)
    assert judgements(shared_stack) == [Thumb(up=True), Thumb(up=True)]


def test_every_example_is_in_the_readme() -> None:
    readme = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.iterdir():
        if not path.name.startswith(("README", "_", ".")):
            assert f"({path.name})" in readme, path.name
