"""Log-probs of tokens that hold half a character: their bytes join, their offsets stay."""

import json
from typing import Any

import pytest

from tuneloop.gateway.openai.calls import GeneratedAnswer
from tuneloop.gateway.openai.chunks import ChunkForm, ChunkWriter, chat_logprobs, text_logprobs
from tuneloop.gateway.openai.routes import chat_chunks, text_chunks
from tuneloop.v1 import generation_pb2

ANSWER = "a漢 😀!"
TOKENS = (b"a", b"\xe6\xbc", b"\xa2", b" \xf0\x9f", b"\x98", b"\x80", b"!", b"")
OFFSETS = [0, 1, 1, 2, 3, 3, 4, 5]
PIECES = ("a", "", "漢", " ", "", "😀", "!", "")
"""What an engine sends with each of the tokens: no half characters."""


def spelled(data: bytes) -> str:
    try:
        return data.decode() or "<|im_end|>"
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def position(data: bytes) -> generation_pb2.PositionLogprobs:
    token = generation_pb2.TokenLogprob(
        token_id=7, token=spelled(data), token_bytes=data, logprob=-0.5
    )
    others = [
        generation_pb2.TokenLogprob(token=spelled(half), token_bytes=half, logprob=-1)
        for half in (b"\xe6", b"\xe7")
    ]
    return generation_pb2.PositionLogprobs(chosen=token, top=[token, *others])


def streamed(form: ChunkForm) -> list[dict[str, Any]]:
    """Return `logprobs` of each chunk that has some."""
    answer = GeneratedAnswer(
        group_id="c",
        created=0,
        started=0.0,
        requests=(generation_pb2.GenerateRequest(completion_id="c"),),
        n=1,
        with_tools=False,
    )
    writer = ChunkWriter(answer, "tuneloop", form, include_usage=False, with_logprobs=True)
    chunks = b"".join(
        writer.write_piece(
            0, generation_pb2.GenerateDelta(text=text, token_ids=[7], logprobs=[position(data)])
        )
        for data, text in zip(TOKENS, PIECES, strict=True)
    )
    documents = [json.loads(part.removeprefix(b"data: ")) for part in chunks.split(b"\n\n")[:-1]]
    choices = [document["choices"][0] for document in documents]
    return [choice["logprobs"] for choice in choices if choice["logprobs"]]


@pytest.mark.parametrize("stream", [False, True])
def test_the_bytes_of_a_chat_are_the_answer(stream: bool) -> None:
    if stream:
        content = [token for part in streamed(chat_chunks) for token in part["content"]]
    else:
        content = chat_logprobs(map(position, TOKENS))["content"]
    assert bytes(byte for token in content for byte in token["bytes"]).decode() == ANSWER
    assert [token["token"] for token in content[:3]] == ["a", "bytes:\\xe6\\xbc", "bytes:\\xa2"]
    assert [token["bytes"] for token in content[0]["top_logprobs"]] == [[97], [0xE6], [0xE7]]


@pytest.mark.parametrize("stream", [False, True])
def test_offsets_count_characters_of_the_text(stream: bool) -> None:
    parts = streamed(text_chunks) if stream else [text_logprobs(map(position, TOKENS), 0)]
    assert [offset for part in parts for offset in part["text_offset"]] == OFFSETS
    # Different halves are different candidates.
    assert len(parts[0]["top_logprobs"][0]) == 3


def test_a_service_that_says_no_bytes_is_understood() -> None:
    token = generation_pb2.TokenLogprob(token_id=7, token="é", logprob=-0.5)
    positions = [generation_pb2.PositionLogprobs(chosen=token)]
    assert chat_logprobs(positions)["content"][0]["bytes"] == [0xC3, 0xA9]
