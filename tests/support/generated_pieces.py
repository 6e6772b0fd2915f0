"""What generation streams, in pieces: any answer, and one that calls two functions."""

import json
from typing import Any

from hypothesis import strategies as st
from support.gateway_fakes import FakeGeneration

from tuneloop.v1 import generation_pb2

Delta = generation_pb2.GenerateDelta
texts = st.text(alphabet='ab é👋\u2028\n\t"\\', max_size=12)
arguments = st.dictionaries(texts, st.integers() | texts, max_size=3).map(json.dumps)


@st.composite
def cut(draw: st.DrawFn, whole: str) -> list[str]:
    """Cut a text into pieces, some of which may be empty."""
    places = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    return [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True)]


@st.composite
def deltas(draw: st.DrawFn) -> list[Delta]:
    """What an answer is sampled as: a thought, texts and calls in turn, each in pieces."""
    found = [Delta(reasoning=piece) for piece in draw(cut(draw(texts)))]
    for index in range(draw(st.integers(0, 3))):
        found += [Delta(text=piece) for piece in draw(cut(draw(texts)))]
        for at, piece in enumerate(draw(cut(draw(arguments)))):
            call_id, name = (f"call_{index}", f"tool {index}") if at == 0 else ("", "")
            call = generation_pb2.ToolCallDelta(
                index=index, call_id=call_id, name=name, arguments=piece
            )
            found.append(Delta(tool_calls=[call]))
    return found + [Delta(text=piece) for piece in draw(cut(draw(texts)))]


def call_two_functions(generation: FakeGeneration, between: str = "\n") -> None:
    """Have all answers say "let me see", call `look_up` and `store`, with a text `between`."""
    delta = generation.delta
    parts = {
        0: ("call_a", "look_up", '{"word"'),
        1: ("", "", ': "x"}'),
        2: ("call_b", "store", "{}"),
    }

    def calling(request: Any, index: int, piece: str) -> Any:
        message = delta(request, index, piece)
        at = generation.pieces.index(piece)
        message.text = "let me see" if at == 0 else between
        if at in parts:
            call_id, name, given = parts[at]
            message.tool_calls.add(index=at // 2, call_id=call_id, name=name, arguments=given)
        return message

    generation.delta = calling  # type: ignore[method-assign]
