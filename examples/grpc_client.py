"""Generation over gRPC, without the gateway: `python -m examples.grpc_client [HOST:PORT [TOKEN]]`.

The token is what `tuneloop up` keeps in keys/grpc_token in its data folder.

First with the stubs that the package carries, then by reflection alone, as a program without our
protos would. What is generated here is not signed by the gateway, so that no feedback can name it.
"""

import sys
import uuid
from pathlib import Path

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from tuneloop.v1 import generation_pb2, generation_pb2_grpc, rollout_pb2

SERVICE = "tuneloop.v1.GenerationService"


Metadata = tuple[tuple[str, str], ...]


def with_stubs(channel: grpc.Channel, metadata: Metadata) -> None:
    """Stream an answer; cancelling the call would stop the work."""
    health = health_pb2_grpc.HealthStub(channel)
    status = health.Check(health_pb2.HealthCheckRequest(service=SERVICE)).status
    print(f"{SERVICE} is {health_pb2.HealthCheckResponse.ServingStatus.Name(status)}")

    generation = generation_pb2_grpc.GenerationServiceStub(channel)
    request = generation_pb2.GenerateRequest(
        completion_id=f"example-{uuid.uuid4().hex}",
        policy="tuneloop",
        chat=rollout_pb2.ChatPrompt(
            messages=[rollout_pb2.ChatMessage(role="user", content="Tell me a short story.")]
        ),
        sampling=rollout_pb2.SamplingParameters(max_tokens=48, n=1, temperature=0.7, top_p=1.0),
        tenant="example",
        user_hash="example",
    )
    for event in generation.Generate(request, timeout=60, metadata=metadata):
        if event.WhichOneof("event") == "delta":
            print(event.delta.text, end="", flush=True)
        else:
            reason = rollout_pb2.FinishReason.Name(event.final.finish_reason)
            print(f"\nversion {event.final.policy_version}, {reason}")


def by_reflection(channel: grpc.Channel, metadata: Metadata) -> None:
    """Find the service, its method and its messages by asking the server."""
    database = ProtoReflectionDescriptorDatabase(channel)
    print("services:", ", ".join(sorted(database.get_services())))
    service = DescriptorPool(database).FindServiceByName(SERVICE)
    method = service.methods_by_name["GetPolicy"]
    ask = channel.unary_unary(
        f"/{SERVICE}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    answer = ask(
        GetMessageClass(method.input_type)(policy="tuneloop"), timeout=10, metadata=metadata
    )
    print(f"{answer.policy.base_model} serves version {answer.policy.policy_version}")


def main() -> None:
    """Both ways, on one channel."""
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:15051"
    token = Path(".tuneloop/keys/grpc_token")
    given = sys.argv[2] if len(sys.argv) > 2 else token.read_text() if token.exists() else ""
    metadata = (("authorization", f"Bearer {given}"),) if given else ()
    with grpc.insecure_channel(address) as channel:
        with_stubs(channel, metadata)
        by_reflection(channel, metadata)


if __name__ == "__main__":
    main()
