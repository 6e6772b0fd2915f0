"""Log-probs in OpenAI's two forms: chat's list of objects, and the older parallel lists."""

from collections.abc import Iterable
from typing import Any

from tuneloop.v1 import generation_pb2

IMPOSSIBLE = -9999.0
"""OpenAI's stand-in for minus infinity, which JSON does not have."""


def finite(logprob: float) -> float:
    return max(logprob, IMPOSSIBLE)


def token_logprob(token: generation_pb2.TokenLogprob) -> dict[str, Any]:
    """One token with its bytes."""
    return {
        "token": token.token,
        "logprob": finite(token.logprob),
        "bytes": list(token.token.encode()),
    }


def chat_logprobs(positions: Iterable[generation_pb2.PositionLogprobs]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion."""
    content = [
        token_logprob(position.chosen)
        | {"top_logprobs": [token_logprob(candidate) for candidate in position.top]}
        for position in positions
    ]
    return {"content": content, "refusal": None}


def text_logprobs(
    positions: Iterable[generation_pb2.PositionLogprobs], offset: int
) -> dict[str, Any]:
    """`choices[].logprobs` of a plain completion; `offset` characters came before."""
    tokens, offsets, logprobs, top = [], [], [], []
    for position in positions:
        tokens.append(position.chosen.token)
        offsets.append(offset)
        offset += len(position.chosen.token)
        logprobs.append(finite(position.chosen.logprob))
        top.append({candidate.token: finite(candidate.logprob) for candidate in position.top})
    return {
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": top,
        "text_offset": offsets,
    }
