"""Lineage, forgetting and rebuilding over HTTP and from the command line."""

import asyncio
import json
import math
from typing import Any

import httpx
import pytest
import typer
from support.gateway_fakes import FakeLearner
from support.gateway_stack import Stack
from typer.testing import CliRunner, Result

from tuneloop.cli.forget import forget
from tuneloop.cli.lineage import lineage_app
from tuneloop.cli.policies import policies_app
from tuneloop.gateway.edge.authentication import scope_for
from tuneloop.gateway.keys.store import Scope
from tuneloop.v1 import learner_pb2

app = typer.Typer()
app.add_typer(lineage_app, name="lineage")
app.add_typer(policies_app, name="policies")
app.command()(forget)


class Learner(FakeLearner):
    """A learner that is alarmed, and whose versions can be built again."""

    async def ForgetUser(self, request: Any, context: Any) -> Any:
        answer = await super().ForgetUser(request, context)
        answer.descended_versions.append(2)
        answer.rebuild_from = 0
        return answer

    async def GetStatus(self, request: Any, context: Any) -> Any:
        status = await super().GetStatus(request, context)
        alarm = status.alarms.add(name="kl", numbers={"kl": 3.0})
        alarm.since.FromSeconds(1_700_000_000)
        status.retracted.add(policy_version=2, samples=1, share=0.25)
        return status


pytestmark = pytest.mark.gateway(learner=Learner)


async def run(stack: Stack, *arguments: str, typed: str | None = None) -> Result:
    environment = {"TUNELOOP_URL": stack.url, "TUNELOOP_API_KEY": ""}
    return await asyncio.to_thread(
        CliRunner().invoke, app, list(arguments), input=typed, env=environment
    )


async def test_lineage_of_feedback(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.url) as client:
        answer = (await client.get("/v1/lineage/feedback/fb-1")).json()
        missing = await client.get("/v1/lineage/feedback/fb-2")
    assert answer["policy"] == {"direct": [2], "descended": [3, 4]}
    assert answer["samples"][0]["steps"] == [3, 5]
    assert (missing.status_code, missing.json()["error"]["param"]) == (404, "feedback_id")
    assert json.loads((await run(stack, "lineage", "feedback", "fb-1", "--json")).stdout) == answer
    shown = (await run(stack, "lineage", "feedback", "fb-1")).stdout
    assert "versions 3, 4" in shown
    assert "3, 5" in shown


async def test_what_learning_from_feedback_changed(stack: Stack) -> None:
    """log π from -3 to -2 is e times as likely; an edit has no completion id."""
    stack.learner.effects = [
        learner_pb2.Effect(
            policy_version=2, text="edit", tokens=4, logprob_before=-3, logprob_after=-2
        )
    ]
    async with httpx.AsyncClient(base_url=stack.url) as client:
        lineage = (await client.get("/v1/lineage/feedback/fb-1")).json()
        chat = {"model": "tuneloop", "messages": [{"role": "user", "content": "hello"}]}
        answer = (await client.post("/v1/chat/completions", json=chat)).json()
        thumb = {"kind": "thumb", "completion_id": answer["id"], "value": "up", "id": "t1"}
        assert (await client.post("/v1/feedback", json=thumb)).status_code == 202
        given = (await client.get("/v1/feedback/t1")).json()
        stack.learner.effects = []
        unknown = (await client.get("/v1/feedback/t1")).json()
    [effect] = lineage["effects"]
    assert effect == {
        "policy_version": 2,
        "text": "edit",
        "completion_id": None,
        "tokens": 4,
        "logprob_before": -3.0,
        "logprob_after": -2.0,
        "times_as_likely": math.e,
    }
    assert (given["effects"], given["used_by_versions"]) == ([effect], [2])
    assert (unknown["value"], unknown["effects"]) == ("up", [])
    assert unknown["used_by_versions"] == []
    stack.learner.effects = [learner_pb2.Effect(policy_version=2, text="edit", logprob_after=1e9)]
    shown = (await run(stack, "lineage", "feedback", "fb-1")).stdout
    assert "your better answer is now over 1,000 times as likely" in shown


async def test_a_receipt_says_what_is_known_while_parts_are_down(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.url) as client:
        chat = {"model": "tuneloop", "messages": [{"role": "user", "content": "hello"}]}
        answer = (await client.post("/v1/chat/completions", json=chat)).json()
        thumb = {"kind": "thumb", "completion_id": answer["id"], "value": "up", "id": "t1"}
        accepted = (await client.post("/v1/feedback", json=thumb)).json()
        path = f"/v1/receipts/{accepted['receipt']}"
        # The learner has not recorded it yet.
        found = (await client.get(path)).json()
        assert (found["policy_versions"], found["is_serving"]) == ([], False)
        await stack.servers["generation"].stop()
        found = (await client.get(path)).json()
        assert (found["serving_version"], found["is_serving"]) == (None, None)
        await stack.servers["learner"].stop()
        found = (await client.get(path)).json()
    assert (found["status"], found["policy_versions"], found["effects"]) == ("accepted", None, [])


async def test_lineage_of_a_user(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.url) as client:
        answer = (await client.get("/v1/lineage/users/ann%2Fbob")).json()
    assert (answer["id"], answer["rebuild_from"]) == ("ann/bob", 1)
    assert answer["samples"] == {"open": 1, "used": 2}
    assert answer["forgotten"][0]["policy_versions"] == [2]
    printed = await run(stack, "lineage", "user", "ann/bob", "--json")
    assert json.loads(printed.stdout) == answer
    assert len({call.user_hash for call in stack.learner.calls}) == 1
    assert "2 rollouts and 1 feedback" in (await run(stack, "lineage", "user", "ann")).stdout


@pytest.mark.parametrize(
    ("kind", "field", "name"),
    [("key", "api_key", "shop"), ("tenant", "tenant", "shop"), ("tag", "tag", "feature=a/b c")],
)
async def test_lineage_of_a_sender(stack: Stack, kind: str, field: str, name: str) -> None:
    async with httpx.AsyncClient(base_url=stack.url) as client:
        answer = (await client.get(f"/v1/lineage/{kind}s/{name}")).json()
    assert answer == {
        "id": name,
        "feedback": 4,
        "retracted": 1,
        "users": 2,
        "samples": {"retracted": 1, "used": 3},
        "policy": {"direct": [2], "descended": [3]},
        "reward_model": {"direct": [], "descended": []},
        "versions": [{"policy_version": 2, "samples": 3, "share": 0.75}],
        "rebuild_from": 1,
    }
    (asked,) = stack.learner.calls
    assert (asked.WhichOneof("sender"), getattr(asked, field)) == (field, name)
    assert json.loads((await run(stack, "lineage", kind, name, "--json")).stdout) == answer
    assert "75%" in (await run(stack, "lineage", kind, name)).stdout


async def test_what_was_retracted_after_training_is_shown(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.url) as client:
        status = (await client.get("/v1/learner")).json()
    assert status["retracted"] == [{"policy_version": 2, "samples": 1, "share": 0.25}]
    assert status["learns_from_comments"] is False
    printed = await run(stack, "lineage", "retracted", "--json")
    assert json.loads(printed.stdout) == status["retracted"]
    assert "25%" in (await run(stack, "lineage", "retracted")).stdout


@pytest.mark.parametrize(
    ("option", "field"), [("--before-key", "before_api_key"), ("--before-tenant", "before_tenant")]
)
async def test_rebuilding_without_a_sender(stack: Stack, option: str, field: str) -> None:
    result = await run(stack, "policies", "rebuild", option, "shop", "--yes")
    assert "feedback_retracted: 4" in result.stdout
    (asked,) = stack.learner.calls
    assert (asked.WhichOneof("start"), getattr(asked, field)) == (field, "shop")
    refused = await run(stack, "policies", "rebuild", option, "shop", typed="n\n")
    assert f"({option[2:].replace('-', ' ')} shop)" in refused.stderr


async def test_forgetting_says_that_weights_are_not_unlearned_and_offers_a_rebuild(
    stack: Stack,
) -> None:
    result = await run(stack, "forget", "ann", "--yes")
    assert "Weights are not unlearned" in result.stdout
    assert "tuneloop policies rebuild --before-user 'ann'" in result.stderr
    answer = json.loads((await run(stack, "forget", "ann", "--yes", "--json")).stdout)
    assert (answer["policy_versions"], answer["descended_versions"]) == ([1], [2])
    assert answer["rebuild_from"] == 0


async def test_rebuilding(stack: Stack) -> None:
    result = await run(stack, "policies", "rebuild", "--before-user", "ann", "--yes", "--json")
    assert json.loads(result.stdout) == {
        "policy": "tuneloop",
        "policy_version": 1,
        "restored_version": 0,
        "left_behind": [2, 3],
        "samples_put_back": 9,
        "feedback_retracted": 4,
    }
    assert "restored_version: 0" in (await run(stack, "policies", "rebuild", "1", "--yes")).stdout
    of_user, of_version = stack.learner.calls
    assert (of_user.WhichOneof("start"), of_version.policy_version) == ("before_user_hash", 1)
    assert of_user.actor == "http:127.0.0.1"
    for wrong in ((), ("1", "--before-user", "ann")):
        assert "say from where" in (await run(stack, "policies", "rebuild", *wrong)).stderr
    refused = await run(stack, "policies", "rebuild", "1", typed="n\n")
    assert (refused.exit_code, len(stack.learner.calls)) == (1, 2)
    async with httpx.AsyncClient(base_url=stack.url) as client:
        for body in ({}, {"policy_version": 1, "before_user": "ann"}, {"policy_version": -1}):
            answer = await client.post("/v1/policies/rebuild", json=body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "policy_version")


async def test_alarms_are_in_the_status(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.url) as client:
        status = (await client.get("/v1/learner")).json()
    assert status["alarms"] == [
        {"name": "kl", "since": "2023-11-14T22:13:20Z", "numbers": {"kl": 3.0}}
    ]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param("GET", "/v1/lineage/feedback/fb-1", id="feedback"),
        pytest.param("GET", "/v1/lineage/users/ann", id="user"),
        pytest.param("GET", "/v1/lineage/keys/shop", id="key"),
        pytest.param("GET", "/v1/lineage/tenants/shop", id="tenant"),
        pytest.param("GET", "/v1/lineage/tags/feature=search", id="tag"),
        pytest.param("POST", "/v1/policies/rebuild", id="rebuild"),
        pytest.param("DELETE", "/v1/users/ann", id="forget"),
    ],
)
def test_only_admins_may(method: str, path: str) -> None:
    assert scope_for(method, path) is Scope.ADMIN


async def test_a_session_from_the_command_line(stack: Stack) -> None:
    shown = await run(stack, "lineage", "session", "chat 7")
    assert stack.learner.calls[-1].session_id == "chat 7"
    assert "c1" in shown.stdout
    assert "versions 2" in shown.stdout
    as_json = await run(stack, "lineage", "session", "chat 7", "--json")
    assert json.loads(as_json.stdout)["turns"][0]["policy_version"] == 1
    gone = await run(stack, "forget", "--session", "chat 7", typed="y\n")
    assert "rollouts_removed: 3" in gone.stdout
    assert isinstance(stack.learner.calls[-1], learner_pb2.ForgetSessionRequest)
    assert stack.learner.calls[-1].session_id == "chat 7"
