"""The prompt that two answers begin with ends where a word begins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.learner.data.words import cut_after_prompt


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("yes please", " thanks", " think"),
        ("Human: hi\n\nAssistant:", " yes", " yes, indeed"),
        # A blank is the beginning of a token, a line break is the end of the prompt.
        ("Question: why?\n", "Yes", "Yep"),
        ("Question: why?\n\n", "Yes", "No"),
        ("Question: why?", "\n\nYes", "\nNo"),
        ("Question: why?\n", "  Yes", "  No"),
        ("Question: why?\r\n", "Yes", "No"),
        ("Question: why?", "\tYes", "\tNo"),
        ("a question", "  Yes", "  No"),
        # Templates may end in a tag.
        ("<s>[INST] How are you? [/INST]", "Well", "Badly"),
        ("<|User|>How are you?<|Assistant|>", "Well", "Badly"),
        ("It is", " 10:30", " 10:45"),
        # No blanks: each character may begin a word.
        ("问：日本的首都是哪里？答：", "东京。", "大阪。"),
        ("你好吗？\n", "我很好", "不太好"),
        ("Human: 你好吗？我", "很好", "不太好"),
        ("日本の首都はどこですか。", "東京です。", "パリです。"),
        ("質問：", "が", "か"),
        ("เมืองหลวงคือ", "กรุงเทพ", "ปารีส"),
        ("我喜欢", "Python", "Pascal"),
        # A character of several code points stays whole.
        ("质问：", "か\u3099", "か"),
        ("旗：", "\U0001f1eb\U0001f1f7", "\U0001f1eb\U0001f1ee"),
        ("手：", "\U0001f44d\U0001f3fb", "\U0001f44d\U0001f3ff"),
        # One is the beginning of the other.
        ("答：", "是", "是的"),
    ],
)
def test_a_prompt_ends_between_words(prompt: str, chosen: str, rejected: str) -> None:
    assert cut_after_prompt(prompt + chosen, prompt + rejected) == len(prompt)
    assert cut_after_prompt(prompt + rejected, prompt + chosen) == len(prompt)


@pytest.mark.parametrize(("one", "other"), [("Yes", "Yep"), ("Yes", "No"), ("", "a"), ("a", "a")])
def test_answers_alone_have_no_prompt(one: str, other: str) -> None:
    assert cut_after_prompt(one, other) == 0


texts = st.text(st.sampled_from("ab \n:我か\u3099\U0001f1eb"), max_size=8)


@given(shared=texts, one=texts, other=texts)
def test_both_texts_begin_with_the_prompt_and_go_on(shared: str, one: str, other: str) -> None:
    length = cut_after_prompt(shared + one, shared + other)
    assert (shared + one)[:length] == (shared + other)[:length]
    if length:
        assert length < min(len(shared + one), len(shared + other))
