"""Calls of functions: read from text in any pieces, rendered by the template, refused by name."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_models import TOOL_CHAT_TEMPLATE

from tuneloop import wire
from tuneloop.errors import CorruptData, InvalidRequest
from tuneloop.generation.formats.tool_calls import (
    ToolCallDelta,
    check_tools,
    constrain_to_calls,
    merge_calls,
)
from tuneloop.generation.prompts import Tokenization
from tuneloop.generation.transformers.hermes import BEGIN, END, HermesFormat, HermesParser
from tuneloop.rollouts import ChatMessage, Prompt, SamplingParameters, Tool, ToolCall, ToolUse
from tuneloop.v1 import generation_pb2

TOOL = Tool(name="look_up", description="a word", parameters='{"type": "object"}')
USE = ToolUse(tools=(TOOL,))
plain = st.text(st.sampled_from("ab <>/_tool_call\n{}"), max_size=30)
calls = st.builds(
    lambda name, arguments: {"name": name, "arguments": arguments},
    st.text("abc", min_size=1),
    st.dictionaries(st.text("xy<>", max_size=4), st.integers() | st.text("</>", max_size=9)),
)


def spelled(call: object) -> str:
    return f"{BEGIN}\n{json.dumps(call)}\n{END}"


def read(parser: HermesParser, pieces: list[str]) -> tuple[str, list[ToolCallDelta]]:
    text, found = "", []
    for position, piece in enumerate(pieces):
        more, new = parser.feed(piece, (), ends=position == len(pieces) - 1)
        text, found = text + more, [*found, *new]
    return text, found


@given(
    before=plain.filter(lambda text: BEGIN not in text and END not in text),
    made=st.lists(calls, max_size=3),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_calls_are_read_however_the_text_is_cut(
    before: str, made: list[dict[str, object]], cuts: list[int]
) -> None:
    text = before + "\n".join(map(spelled, made))
    # A tag that is made of what stood before and what follows is no case of interest.
    if text.find(BEGIN) not in (-1, len(before)):
        return
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    content, found = read(HermesParser(single=False), pieces)
    assert content == before
    assert [{"name": c.name, "arguments": json.loads(c.arguments)} for c in found] == made
    assert [c.index for c in found] == list(range(len(made)))
    assert len({c.call_id for c in found}) == len(made)


@given(text=plain, cut=st.integers(0, 30))
def test_text_without_calls_is_passed_on_whole(text: str, cut: int) -> None:
    broken = f"{text}{BEGIN}{text}"
    for whole in (text, broken, f"{broken}{END}"):
        content, found = read(HermesParser(single=False), [whole[:cut], whole[cut:]])
        assert (content, found) == (whole, [])


def test_text_flows_before_a_call_and_one_call_is_enough_where_one_is_asked_for() -> None:
    parser = HermesParser(single=True)
    assert parser.feed("let me see <tool", (), ends=False)[0] == "let me see "
    two = f"_call>{json.dumps({'name': 'a'})}{END}\n{spelled({'name': 'b'})}"
    content, found = parser.feed(two, (), ends=True)
    assert (content, [(c.name, c.arguments) for c in found]) == ("", [("a", "{}")])
    cut_off, found = read(HermesParser(single=False), [BEGIN, '{"name": "a", "argum'])
    assert (cut_off, found) == (BEGIN + '{"name": "a", "argum', [])


def test_grammars_only_where_something_is_forced() -> None:
    tool_format = HermesFormat()
    assert tool_format.structural_tag(USE) == ""
    for use in (
        ToolUse(tools=(TOOL,), name="look_up"),
        ToolUse(tools=(TOOL,), required=True),
        ToolUse(tools=(Tool(name="look_up", strict=True),)),
    ):
        assert "look_up" in json.dumps(json.loads(tool_format.structural_tag(use)))
    with pytest.raises(InvalidRequest) as refused:
        constrain_to_calls(SamplingParameters(json_schema="{}"), USE, tool_format)
    assert refused.value.param == "response_format"


def test_tools_are_refused_by_name_where_they_cannot_be_had() -> None:
    asked = ChatMessage(role="user", content="?")
    with_tools = Prompt(messages=(asked,), tool_use=USE)
    result = Prompt(messages=(asked, ChatMessage(role="tool", content="1", tool_call_id="c")))
    for prompt, param in ((with_tools, "tools"), (result, "messages")):
        with pytest.raises(InvalidRequest, match="TUNELOOP_GENERATION_TOOL_PARSER") as refused:
            check_tools(prompt, None, in_template=True)
        assert refused.value.param == param
        with pytest.raises(InvalidRequest, match="chat template"):
            check_tools(prompt, HermesFormat(), in_template=False)
        check_tools(prompt, HermesFormat(), in_template=True)
    check_tools(Prompt(text="?"), None, in_template=False)
    with pytest.raises(InvalidRequest, match="conversation"):
        check_tools(Prompt(text="?", tool_use=USE), HermesFormat(), in_template=True)


def test_the_template_shows_functions_calls_and_results(tiny_policy: Path) -> None:
    tokenization = Tokenization(tiny_policy)
    assert not tokenization.takes_tools
    tokenization = Tokenization(tiny_policy)
    tokenization.tokenizer.chat_template = TOOL_CHAT_TEMPLATE
    assert tokenization.takes_tools
    call = ToolCall(call_id="c", name="look_up", arguments='{"word": "x"}')
    turns = (
        ChatMessage(role="user", content="?"),
        ChatMessage(role="assistant", content="", tool_calls=(call,)),
        ChatMessage(role="tool", content="42", tool_call_id="c"),
    )
    text = tokenization.tokenize(Prompt(messages=turns, tool_use=USE)).text
    assert '"name": "look_up"' in text
    assert '{"name": "look_up", "arguments": {"word": "x"}}' in text
    assert "tool\n42" in text
    bad = ChatMessage(role="assistant", content="", tool_calls=(replace(call, arguments="{"),))
    with pytest.raises(InvalidRequest, match="not JSON"):
        tokenization.tokenize(Prompt(messages=(bad,)))


def test_what_may_be_called_travels_and_is_checked() -> None:
    for use in (USE, ToolUse(tools=(TOOL, Tool(name="b", strict=True)), name="b", single=True)):
        assert wire.tool_use_from_proto(wire.tool_use_to_proto(use)) == use
    turn = ChatMessage(
        role="assistant",
        content="",
        tool_calls=(ToolCall(call_id="c", name="f", arguments="{}"),),
    )
    result = ChatMessage(role="tool", content="1", tool_call_id="c")
    assert wire.messages_from_proto(wire.messages_to_proto((turn, result))) == (turn, result)
    tool = generation_pb2.Tool
    for message, param in (
        (generation_pb2.ToolUse(), "tools"),
        (generation_pb2.ToolUse(tools=[tool(name="no spaces")]), "tools"),
        (generation_pb2.ToolUse(tools=[tool(name="a"), tool(name="a")]), "tools"),
        (generation_pb2.ToolUse(tools=[tool(name="a", parameters="[]")]), "tools"),
        (generation_pb2.ToolUse(tools=[tool(name="a", parameters="{")]), "tools"),
        (generation_pb2.ToolUse(tools=[tool(name="a")], name="b"), "tool_choice"),
    ):
        with pytest.raises(CorruptData) as refused:
            wire.tool_use_from_proto(message)
        assert refused.value.param == param


@pytest.mark.parametrize(
    ("schema", "tag", "param"),
    [
        ("{", "", "response_format"),
        ("[]", "", "response_format"),
        ("[" * 100_000, "", "response_format"),
        ("", "no", "structural_tag"),
        ("{}", "{}", "response_format"),
    ],
)
def test_what_is_no_grammar_is_refused_by_name(schema: str, tag: str, param: str) -> None:
    message = wire.sampling_to_proto(SamplingParameters(json_schema=schema, structural_tag=tag))
    with pytest.raises(CorruptData) as refused:
        wire.sampling_from_proto(message)
    assert refused.value.param == param


def test_deltas_of_one_call_are_joined() -> None:
    def delta(index: int, name: str, arguments: str) -> ToolCallDelta:
        return ToolCallDelta(index=index, call_id=name, name=name, arguments=arguments)

    joined = merge_calls(
        [delta(0, "a", ""), delta(0, "", "{"), delta(1, "b", "{}"), delta(0, "", "}")]
    )
    assert joined == (delta(0, "a", "{}"), delta(1, "b", "{}"))
