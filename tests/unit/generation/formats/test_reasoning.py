"""Thoughts are told from answers however the text is cut, in tags and in channels."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.thinking_models import completion_of, make_thinking_tokenizer

from tuneloop.errors import InvalidRequest
from tuneloop.generation.formats.answer import AnswerReader
from tuneloop.generation.formats.choice import choose_reasoning, choose_tools
from tuneloop.generation.formats.detokenization import Detokenizer
from tuneloop.generation.formats.harmony import HarmonyCalls, HarmonyReasoning, HarmonyTools
from tuneloop.generation.formats.reasoning import ReasoningParser, constrain_answer
from tuneloop.generation.formats.tags import TagFormat
from tuneloop.generation.formats.tool_calls import merge_calls
from tuneloop.generation.prompts import Tokenization
from tuneloop.rollouts import (
    ChatMessage,
    FinishReason,
    Prompt,
    SamplingParameters,
    Tool,
    ToolCall,
    ToolUse,
)

THINK = TagFormat(begin="<think>", end="</think>")
ALWAYS = TagFormat(begin="<think>", end="</think>", always=True)
# Letters of the tags, so that halves of them come up.
words = st.text(st.sampled_from("ab <>/think\n"), max_size=20).map(
    lambda text: text.replace("<think>", "").replace("</think>", "")
)
plain = words.filter(lambda text: not any(tag in text for tag in ("<think>", "</think>")))


def pieces_of(text: str, cuts: Sequence[int]) -> list[str]:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def feed(parser: ReasoningParser, pieces: Sequence[str]) -> tuple[str, str]:
    thought = answer = ""
    for number, piece in enumerate(pieces):
        more = parser.feed(piece, number, ends=number == len(pieces) - 1)
        thought, answer = thought + more[0], answer + more[1]
    return thought, answer


cuts = st.lists(st.integers(0, 80), max_size=12)


@given(thought=plain, answer=plain, cuts=cuts, begun=st.booleans())
def test_a_thought_in_tags_is_told_from_the_answer(
    thought: str, answer: str, cuts: list[int], begun: bool
) -> None:
    # What ends a thought is its end tag, also one that its own last letters would begin.
    if "</think>" in (thought + "</think>")[:-8] or (thought + "</think>").find("</think>") < len(
        thought
    ):
        return
    text = f"{thought}</think>\n\n{answer}"
    prompt = "assistant\n<think>\n" if begun else "assistant\n"
    if not begun:
        text = "<think>\n" + text
    if begun and text.lstrip().startswith("<think>"):
        return
    found = feed(THINK.parser(prompt), pieces_of(text, cuts))
    assert found == (thought.strip(), answer.lstrip())


@given(text=plain, cuts=cuts)
def test_what_begins_no_thought_is_the_answer_as_it_is(text: str, cuts: list[int]) -> None:
    parser = THINK.parser("assistant\n<think>\n\n</think>\n\n")
    assert feed(parser, pieces_of(text, cuts)) == ("", text)
    assert (parser.thought_tokens, parser.in_thought) == (0, False)


@given(thought=plain, cuts=cuts)
def test_a_thought_that_is_cut_off_is_no_answer(thought: str, cuts: list[int]) -> None:
    for prompt, text in (("", f"<think>{thought}"), ("<think>\n", thought)):
        if text.lstrip().count("<think>") > 1:
            return
        parser = THINK.parser(prompt)
        assert feed(parser, pieces_of(text, cuts)) == (thought.strip(), "")
        assert parser.in_thought


def test_the_prompt_tells_whether_a_thought_has_begun() -> None:
    assert feed(THINK.parser("<think>\n"), ["hm", "</think>", "yes"]) == ("hm", "yes")
    # A model may write the tag again.
    assert feed(THINK.parser("<think>\n"), ["<think>\nhm</think>yes"]) == ("hm", "yes")
    assert feed(ALWAYS.parser("assistant\n"), ["hm</think>", "yes"]) == ("hm", "yes")
    assert feed(ALWAYS.parser("<think></think>"), ["yes"]) == ("", "yes")


def test_leading_tokens_are_the_thought_with_its_tags_and_the_space_after_it() -> None:
    parser = THINK.parser("")
    counts = []
    for piece in ("<think>", "\n", "hm", "</think>", "\n\n", "yes", " sir"):
        parser.feed(piece, 0, ends=False)
        counts.append(parser.thought_tokens)
    assert counts == [1, 2, 3, 4, 5, 5, 5]


def test_half_a_character_is_counted_with_the_rest_of_it() -> None:
    parser = THINK.parser("")
    for piece in ("<think>", "hm", "</think>", "", "é"):
        parser.feed(piece, 0, ends=False)
    assert parser.thought_tokens == 3


MESSAGES = st.sampled_from(["", "ab", "<", "<|", "c <|en d", "x|>\ny"])


@given(
    thoughts=st.lists(MESSAGES, max_size=2),
    answer=MESSAGES,
    call=st.none() | st.dictionaries(st.sampled_from("xy"), MESSAGES),
    cuts=st.lists(st.integers(0, 300), max_size=20),
)
def test_channels_are_told_apart_however_the_text_is_cut(
    thoughts: list[str], answer: str, call: dict[str, str] | None, cuts: list[int]
) -> None:
    messages = [f"<|channel|>analysis<|message|>{thought}<|end|>" for thought in thoughts]
    spelled = json.dumps(call)
    if call is None:
        messages.append(f"<|channel|>final<|message|>{answer}")
    else:
        header = "<|channel|>commentary to=functions.look_up <|constrain|>json<|message|>"
        messages.append(header + spelled)
    text = "<|start|>assistant".join(messages)
    parser = HarmonyReasoning().parser("")
    thought, rest = feed(parser, pieces_of(text, cuts))
    assert thought == "\n\n".join(filter(None, thoughts))
    reader = HarmonyCalls(single=False)
    said, calls = "", []
    for number, piece in enumerate([*pieces_of(rest, cuts), ""]):
        more, found = reader.feed(piece, (), ends=number == len(cuts) + 1)
        said, calls = said + more, [*calls, *found]
    if call is None:
        assert (said, calls) == (answer, [])
    else:
        (made,) = merge_calls(calls)
        assert (said, made.name, made.arguments) == ("", "look_up", spelled)


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("plain words", "", "plain words"),
        ("<|channel|>final<|message|>yes<|return|>", "", "yes"),
        ("<|channel|>analysis<|message|>hm", "hm", ""),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assist", "hm", ""),
        ("<|channel|>commentary<|message|>wait<|end|>", "", "wait"),
        (
            "<|channel|>commentary<|message|>wait<|end|><|start|>assistant"
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
            "<|channel|>final<|message|>yes",
            "hm",
            "wait\n\nyes",
        ),
        (
            "<|channel|>analysis<|message|>hm<|start|>assistant<|channel|>final<|message|>y",
            "hm",
            "y",
        ),
        ("<", "", "<"),
    ],
)
def test_channels_that_end_oddly_lose_nothing(text: str, thought: str, answer: str) -> None:
    for size in (1, 3, 1000):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert feed(HarmonyReasoning().parser(""), pieces) == (thought, answer)


def test_a_call_in_a_channel_is_not_counted_as_thought() -> None:
    parser = HarmonyReasoning().parser("")
    for piece in ("<|channel|>", "analysis", "<|message|>", "hm", "<|end|>"):
        parser.feed(piece, 0, ends=False)
    for piece in ("<|start|>", "assistant", " to=functions.f", "<|channel|>", "commentary"):
        parser.feed(piece, 0, ends=False)
    assert parser.feed("<|message|>", 0, ends=False)[1].endswith("commentary<|message|>")
    assert parser.thought_tokens == 5


def test_what_was_cut_off_before_the_answer_is_all_thought() -> None:
    parser = HarmonyReasoning().parser("")
    for number, piece in enumerate(
        ("<|channel|>", "ana", "lysis", "<|message|>", "hm", "<|end|>", "<|start|>"), start=1
    ):
        assert parser.feed(piece, 0, ends=number == 7)[1] == ""
        assert parser.thought_tokens == number


@pytest.fixture(scope="module", params=["qwen3", "gpt-oss", "llama"])
def tokenization(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenization:
    folder = tmp_path_factory.mktemp("tokens") / request.param
    make_thinking_tokenizer(folder, request.param)
    return Tokenization(folder)


def test_formats_are_chosen_by_template_and_tokens(
    tokenization: Tokenization, tiny_policy: Path
) -> None:
    harmony = "<|channel|>" in tokenization.tokenizer.get_vocab()
    assert choose_reasoning(tokenization.tokenizer) == ("openai_gptoss" if harmony else "qwen3")
    takes_tools = "tools" in tokenization.tokenizer.chat_template
    expected = ("openai" if harmony else "hermes") if takes_tools else ""
    assert choose_tools(tokenization.tokenizer) == expected
    plain = Tokenization(tiny_policy).tokenizer
    assert (choose_reasoning(plain), choose_tools(plain)) == ("", "")


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ tools }}<tool_call>\n<function=x>", "qwen3_coder"),
        ("{{ tools }}<tool_call>{}", "hermes"),
        ("{{ tools }}Environment: ipython", "llama3_json"),
        ("{{ tools }}[TOOL_CALLS]", "mistral"),
        ("{{ tools }}", ""),
        ("<tool_call>", ""),
    ],
)
def test_the_format_of_calls_is_what_the_template_writes(
    template: str, name: str, tiny_policy: Path
) -> None:
    tokenizer = Tokenization(tiny_policy).tokenizer
    tokenizer.chat_template = template
    assert choose_tools(tokenizer) == name


def reader_of(tokenization: Tokenization, *stop: str) -> AnswerReader:
    form = HarmonyReasoning() if choose_reasoning(tokenization.tokenizer) != "qwen3" else THINK
    turns = (ChatMessage(role="user", content="?"),)
    prompt = tokenization.tokenize(Prompt(messages=turns)).text
    hidden = tokenization.hidden_tokens(form.marks)
    return AnswerReader(
        Detokenizer(tokenizer=tokenization.tokenizer, hidden=hidden),
        form.parser(prompt),
        None,
        stop=stop,
        stop_token_ids=tokenization.stop_token_ids,
    )


def sampled(tokenization: Tokenization, thought: str, answer: str) -> list[int]:
    template = tokenization.tokenizer.chat_template
    shape = "gpt-oss" if "analysis" in template else "qwen3" if "tools" in template else "llama"
    text = completion_of(shape, thought, answer)
    return list(tokenization.tokenizer(text, add_special_tokens=False).input_ids)


TEXTS = st.text("aé😀 .\n", min_size=1, max_size=8).map(str.strip).filter(bool)


@given(thought=TEXTS, answer=TEXTS, cuts=st.lists(st.integers(0, 60), max_size=8))
def test_tokens_are_read_in_pieces_of_any_size(
    tokenization: Tokenization, thought: str, answer: str, cuts: list[int]
) -> None:
    ids = sampled(tokenization, thought, answer)
    edges = [0, *sorted(min(cut, len(ids) - 1) for cut in cuts), len(ids)]
    reader = reader_of(tokenization)
    readings = [
        reader.read(ids[a:b], FinishReason.STOP if b == len(ids) else None)
        for a, b in itertools.pairwise(edges)
        if b > a
    ]
    assert "".join(r.reasoning for r in readings) == thought
    assert "".join(r.text for r in readings) == answer
    # What follows the thought is the answer and the token that ends the turn.
    rest = ids[reader.reasoning_tokens :]
    shown = tokenization.decode(rest[:-1], skip_special_tokens=False)
    assert (shown, rest[-1] in tokenization.stop_token_ids) == (answer, True)


def test_a_stop_string_ends_the_answer_and_not_the_thought(tokenization: Tokenization) -> None:
    ids = sampled(tokenization, "one stop two", "three stop four")
    reader = reader_of(tokenization, "stop")
    reading = reader.read(ids, None)
    assert (reading.reasoning, reading.text) == ("one stop two", "three ")
    assert reader.stopped_by == "stop"
    kept = tokenization.decode(ids[: reading.tokens])
    assert kept.endswith("stop")
    assert "four" not in kept


def test_a_thought_without_an_answer_is_all_there_is(tokenization: Tokenization) -> None:
    ids = sampled(tokenization, "one two", "three")
    reader = reader_of(tokenization)
    reading = reader.read(ids[:4], FinishReason.LENGTH)
    assert reading.text == ""
    if reader.reasoning.in_thought:
        assert reader.reasoning_tokens == 4


def test_an_answers_grammar_begins_after_the_thought() -> None:
    schema = SamplingParameters(json_schema='{"type": "object"}')
    assert constrain_answer(SamplingParameters(), THINK, "", calls=False, budget=None) == (
        SamplingParameters()
    )
    for form, prompt in ((THINK, ""), (THINK, "<think>\n"), (HarmonyReasoning(), "")):
        held = constrain_answer(schema, form, prompt, calls=False, budget=7)
        tag = json.loads(held.structural_tag)
        assert json.dumps(tag).count('"max_tokens": 7') == 1
        assert (tag["type"], held.grammar_field) == ("structural_tag", "response_format")
    old = SamplingParameters(structural_tag='{"triggers": []}')
    with pytest.raises(InvalidRequest, match="format"):
        constrain_answer(old, THINK, "", calls=False, budget=None)


def test_calls_in_channels_have_a_grammar_where_they_are_forced() -> None:
    tool = Tool(name="f", parameters='{"type": "object"}')
    tools = HarmonyTools()
    assert tools.structural_tag(ToolUse(tools=(tool,))) == ""
    for use in (
        ToolUse(tools=(tool,), required=True),
        ToolUse(tools=(Tool(name="f", strict=True),)),
    ):
        assert "to=functions.f" in tools.structural_tag(use)


def test_options_are_those_that_the_template_reads(tokenization: Tokenization) -> None:
    options = tokenization.options_for_template
    if "reasoning_effort" in tokenization.option_names:
        assert options({"reasoning_effort": "high"}) == {"reasoning_effort": "high"}
        for least in ("none", "minimal"):
            assert options({"reasoning_effort": least}) == {"reasoning_effort": "low"}
    elif "enable_thinking" in tokenization.option_names:
        assert options({"reasoning_effort": "none"}) == {"enable_thinking": False}
        assert options({"reasoning_effort": "low"}) == {"enable_thinking": True}
        assert options({"enable_thinking": False, "reasoning_effort": "low"}) == {
            "enable_thinking": False
        }
    else:
        assert options({"reasoning_effort": "none"}) == {}
    if "enable_thinking" not in tokenization.option_names:
        with pytest.raises(InvalidRequest) as refused:
            options({"enable_thinking": False})
        assert refused.value.param == "enable_thinking"
    for name in ("messages", "bos_token", "namespace", "nothing"):
        with pytest.raises(InvalidRequest, match=name) as refused:
            options({name: "x"})
        assert refused.value.param == "chat_template_kwargs"


def test_a_template_gets_the_thoughts_of_the_turns_it_shows_them_for(
    tokenization: Tokenization,
) -> None:
    if not tokenization.takes_tools:
        return
    call = ToolCall(call_id="c", name="f", arguments="{}")
    turns = (
        ChatMessage(role="user", content="?"),
        ChatMessage(role="assistant", content="", reasoning="first look", tool_calls=(call,)),
        ChatMessage(role="tool", content="42", tool_call_id="c"),
    )
    prompt = Prompt(messages=turns, tool_use=ToolUse(tools=(Tool(name="f"),)))
    assert "first look" in tokenization.tokenize(prompt).text
