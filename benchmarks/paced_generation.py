"""A generation service that streams at a fixed pace and writes the time into every piece.

    python -m benchmarks.paced_generation --first 0.05 --pace 0.03

It computes nothing, so that what a client waits beyond the pace is the price of the way to it. The
clock is the machine's monotonic one, the same in all processes. Prints its port, then serves until
it is told to stop.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import uvloop

from tuneloop.generation.main import stop_signal
from tuneloop.rpc.server import Server
from tuneloop.v1 import generation_pb2, generation_pb2_grpc, rollout_pb2


class PacedGeneration(generation_pb2_grpc.GenerationServiceServicer):
    """Streams `max_tokens` pieces of one token each."""

    def __init__(self, first: float, pace: float) -> None:
        self.first = first
        self.pace = pace

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        due = loop.time() + self.first
        tokens = request.sampling.max_tokens
        for _ in range(tokens):
            await asyncio.sleep(due - loop.time())
            due += self.pace
            text = f"{time.perf_counter()} "
            yield generation_pb2.GenerateResponse(
                delta=generation_pb2.GenerateDelta(text=text, token_ids=[7], policy_version=1)
            )
        final = generation_pb2.GenerateFinal(
            completion_id=request.completion_id,
            token_ids=[7] * tokens,
            generation_logprobs=[-0.5] * tokens,
            finish_reason=rollout_pb2.FINISH_REASON_LENGTH,
            usage=generation_pb2.Usage(prompt_tokens=11, completion_tokens=tokens),
            policy_version=1,
        )
        yield generation_pb2.GenerateResponse(final=final)

    async def GetPolicy(self, request: Any, context: Any) -> Any:
        policy = generation_pb2.Policy(name=request.policy, policy_version=1)
        return generation_pb2.GetPolicyResponse(policy=policy)


async def serve(first: float, pace: float) -> None:
    """Serve until SIGTERM or SIGINT."""
    server = Server(host="127.0.0.1", port=0, drain_seconds=0.1)
    register = generation_pb2_grpc.add_GenerationServiceServicer_to_server
    server.add(register, PacedGeneration(first, pace))
    print(await server.start(), flush=True)
    await server.set_serving(True)
    await stop_signal()
    await server.stop()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=float, required=True, help="seconds to the first piece")
    parser.add_argument("--pace", type=float, required=True, help="seconds between pieces")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(arguments.first, arguments.pace))


if __name__ == "__main__":
    main()
