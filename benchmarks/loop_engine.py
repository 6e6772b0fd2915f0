"""The generation service's engine by itself, in one process with its load.

    python -m benchmarks.loop_engine --model DIR --adapter DIR --max-model-len 2048

Started by `benchmarks.loop`. Prints a line when it is ready. Then each line of its input orders a
load, `{"streams": …, "requests": …, "max_tokens": …}`, and a line with what was seen answers it.
"""

import argparse
import asyncio
import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import TextIO

import uvloop

from benchmarks.load import ChatResult, load_with
from tuneloop.generation.engine import Engine, EngineRequest
from tuneloop.generation.prompts import Tokenization
from tuneloop.generation.service import make_engine
from tuneloop.generation.settings import GenerationSettings
from tuneloop.rollouts import ChatMessage, Prompt, SamplingParameters

ADAPTER = 1


async def engine_chat(
    engine: Engine, tokenization: Tokenization, prompt: str, max_tokens: int
) -> ChatResult:
    """One chat, tokenized as the service does it, from the adapter."""
    started = time.perf_counter()
    asked = Prompt(messages=(ChatMessage(role="user", content=prompt),))
    request = EngineRequest(
        request_id=f"chatcmpl-{secrets.token_hex(8)}",
        prompt_token_ids=tokenization.tokenize(asked).token_ids,
        sampling=SamplingParameters(max_tokens=max_tokens, temperature=0.7),
        policy_version=ADAPTER,
        adapter=ADAPTER,
    )
    pieces = []
    tokens = 0
    async for output in engine.generate(request):
        tokens += len(output.token_ids)
        if output.text:
            pieces.append((time.perf_counter(), output.text))
    return ChatResult(started=started, pieces=tuple(pieces), tokens=tokens)


async def answer_orders(
    settings: GenerationSettings, adapter: Path, orders: TextIO, replies: TextIO
) -> None:
    """Start the engine, then run one load after the other, until there are no more orders."""
    engine = make_engine(settings)
    await engine.start()
    await engine.load_adapter(ADAPTER, adapter)
    tokenization = Tokenization(settings.model)

    async def chat(prompt: str, max_tokens: int) -> ChatResult:
        return await engine_chat(engine, tokenization, prompt, max_tokens)

    print("ready", file=replies, flush=True)
    while line := await asyncio.to_thread(orders.readline):
        seen = await load_with(chat, **json.loads(line))
        reply = {
            "tokens": seen.completion_tokens,
            "seconds": seen.seconds,
            "failed": seen.failed,
            "first_token_seconds_p50": seen.first_token_seconds_p50,
        }
        print(json.dumps(reply), file=replies, flush=True)
    await engine.stop()


def main() -> None:
    """Read the arguments and answer orders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    arguments = parser.parse_args()
    settings = GenerationSettings(model=arguments.model, max_model_len=arguments.max_model_len)
    # vLLM's processes share the standard output, and may write to it.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(answer_orders(settings, arguments.adapter, sys.stdin, replies))


if __name__ == "__main__":
    main()
