"""Neighbouring versions work together: messages of the earlier one, and what it makes of ours.

`tests/data/protos-before.binpb` describes the messages of an earlier commit (see the README there).
A message read and written by its types is one as that version would have sent it: what it does not
know is gone.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor
from support.learner_events import (
    make_comparison,
    make_rating,
    make_rollout,
    make_score,
    make_thumb,
)

from tuneloop import wire
from tuneloop.policies import Activation, WeightsReference
from tuneloop.v1 import events_pb2, generation_pb2, learner_pb2, reward_pb2, rollout_pb2

FILE = Path(__file__).parents[1] / "data" / "protos-before.binpb"
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
WEIGHTS = WeightsReference(policy="p", policy_version=4, uri="file:///w", manifest_sha256="ab")
ACTIVATION = Activation(
    policy="p", policy_version=4, replica="r", activated_time=WHEN, swap_seconds=0.5
)


@pytest.fixture(scope="module")
def before() -> descriptor_pool.DescriptorPool:
    """The earlier messages."""
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(FILE.read_bytes()).file:
        pool.Add(file)
    return pool


def as_before(pool: descriptor_pool.DescriptorPool, name: str, data: bytes) -> bytes:
    """Return a message without what the earlier version does not know."""
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tuneloop.v1.{name}"))
    message = kind.FromString(data)
    message.DiscardUnknownFields()
    found: bytes = message.SerializeToString()
    return found


@pytest.mark.parametrize(
    ("name", "data", "decode"),
    [
        (
            "RolloutGenerated",
            wire.encode_rollout_generated(make_rollout("c1")),
            "rollouts_generated",
        ),
        ("RolloutScored", wire.encode_rollout_scored(make_score("c1")), "rollout_scored"),
        ("FeedbackGiven", wire.encode_feedback(make_thumb("f1", "c1")), "feedback"),
        ("FeedbackGiven", wire.encode_feedback(make_comparison("f1", "c1", "c2")), "feedback"),
        ("FeedbackGiven", wire.encode_feedback(make_rating("f1", "c1", 0.5)), "feedback"),
        ("WeightsReference", wire.encode_routing(WEIGHTS), "routing"),
        ("WeightsPublished", wire.encode_weights_published(WEIGHTS, WHEN), "weights_published"),
        ("PolicyActivated", wire.encode_activation(ACTIVATION), "activation"),
    ],
)
def test_an_event_of_the_earlier_version_means_the_same(
    before: descriptor_pool.DescriptorPool, name: str, data: bytes, decode: str
) -> None:
    decoded: Callable[[bytes], Any] = getattr(wire, f"decode_{decode}")
    assert decoded(as_before(before, name, data)) == decoded(data)


MODULES = (events_pb2, generation_pb2, learner_pb2, reward_pb2, rollout_pb2)


def kinds(described: Any) -> Iterator[Descriptor]:
    """Return every kind of message of some files, nested ones too."""
    todo = [kind for file in described for kind in file.message_types_by_name.values()]
    while todo:
        kind = todo.pop()
        todo += kind.nested_types
        yield kind


def test_every_earlier_message_and_field_is_still_there(
    before: descriptor_pool.DescriptorPool,
) -> None:
    ours = {kind.full_name: kind for kind in kinds(module.DESCRIPTOR for module in MODULES)}
    files = [before.FindFileByName(module.DESCRIPTOR.name) for module in MODULES]
    theirs = list(kinds(files))
    assert len(theirs) > 50
    for kind in theirs:
        fields = ours[kind.full_name].fields_by_number
        for field in kind.fields:
            now = fields[field.number]
            assert (now.name, now.type, now.is_repeated) == (
                field.name,
                field.type,
                field.is_repeated,
            ), field.full_name


def test_every_earlier_method_is_still_there(before: descriptor_pool.DescriptorPool) -> None:
    methods = 0
    for module in MODULES:
        for name, service in before.FindFileByName(module.DESCRIPTOR.name).services_by_name.items():
            now = module.DESCRIPTOR.services_by_name[name].methods_by_name
            for method in service.methods:
                methods += 1
                ours = now[method.name]
                assert ours.input_type.full_name == method.input_type.full_name
                assert ours.output_type.full_name == method.output_type.full_name
                assert ours.server_streaming == method.server_streaming
    assert methods > 10
