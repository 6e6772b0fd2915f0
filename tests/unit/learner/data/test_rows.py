"""Data sets as people have them: every accepted form is read, every problem names its row."""

import json
import shutil
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from support.offline_data import assistant, user, write_jsonl
from support.tiny_models import make_obliging_policy

from tuneloop.errors import InvalidRequest, NotFound
from tuneloop.learner.data.fields import Field
from tuneloop.learner.data.reward_rows import user_of
from tuneloop.learner.data.rows import convert, read_prompts, read_samples, read_texts
from tuneloop.learner.data.table import open_table
from tuneloop.learner.data.tokenize import PromptTokenizer
from tuneloop.rollouts import ChatMessage, Prompt, Tool, ToolUse

PAIR = {"prompt": "yes", "chosen": "no", "rejected": "please"}
THUMB = {"prompt": "yes", "completion": "no", "label": True}


@pytest.fixture(scope="module")
def tokens(tiny_policy: Path) -> PromptTokenizer:
    return PromptTokenizer(tiny_policy, max_length=None)


def texts_of(tokens: PromptTokenizer, sequence: Any) -> tuple[str, str]:
    decode = tokens.tokenization.decode
    return (
        decode(sequence.prompt_token_ids, skip_special_tokens=False),
        decode(sequence.completion_token_ids, skip_special_tokens=False),
    )


def samples(
    algorithm: str, rows: Sequence[Any], tokens: PromptTokenizer, folder: Path
) -> list[Any]:
    path = write_jsonl(folder / "data.jsonl", rows)
    return list(read_samples(algorithm, open_table(str(path)), tokens, "error").samples)


def test_an_encoder_writes_no_text(tiny_reward_model: Path) -> None:
    with pytest.raises(InvalidRequest, match="a BertModel, which writes no text"):
        PromptTokenizer(tiny_reward_model, max_length=None)


def test_plain_text_is_taken_as_it_is(tokens: PromptTokenizer, tmp_path: Path) -> None:
    [sample] = samples("sft", [{"prompt": "yes ", "completion": "no"}], tokens, tmp_path)
    assert texts_of(tokens, sample.sequence) == ("yes ", "no<|im_end|>")
    assert sample.sequence.generation_logprobs == ()


def test_a_conversation_goes_through_the_template(tokens: PromptTokenizer, tmp_path: Path) -> None:
    row = {"prompt": user("yes"), "completion": assistant("no")}
    [sample] = samples("sft", [row], tokens, tmp_path)
    assert texts_of(tokens, sample.sequence) == (
        "<|im_start|>user\nyes<|im_end|>\n<|im_start|>assistant\n",
        "no<|im_end|>",
    )


def test_a_plain_prompt_may_be_a_question(tiny_policy: Path, tmp_path: Path) -> None:
    tokens = PromptTokenizer(tiny_policy, max_length=None, as_chat=True)
    [sample] = samples("sft", [{"prompt": "yes", "completion": "no"}], tokens, tmp_path)
    assert texts_of(tokens, sample.sequence)[0].startswith("<|im_start|>user\nyes<|im_end|>")
    assert texts_of(tokens, sample.sequence)[1] == "no<|im_end|>"


def test_every_answer_of_a_conversation_is_learned(tokens: PromptTokenizer, tmp_path: Path) -> None:
    turns = user("yes") + assistant("no") + user("hello") + assistant("world")
    first, second = samples("sft", [{"messages": turns}], tokens, tmp_path)
    assert texts_of(tokens, first.sequence)[1] == "no<|im_end|>"
    assert "no<|im_end|>\n<|im_start|>user\nhello" in texts_of(tokens, second.sequence)[0]
    assert texts_of(tokens, second.sequence)[1] == "world<|im_end|>"
    assert first.sample_id.endswith("data.jsonl, line 1, answer 1")


def test_text_alone_is_learned_after_its_first_token(
    tokens: PromptTokenizer, tmp_path: Path
) -> None:
    [sample] = samples("sft", [{"text": "hello world"}], tokens, tmp_path)
    assert texts_of(tokens, sample.sequence) == ("<|im_start|>", "hello world<|im_end|>")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": user("yes"), "chosen": assistant("no"), "rejected": assistant("hello")},
        {"chosen": user("yes") + assistant("no"), "rejected": user("yes") + assistant("hello")},
        {
            "prompt": "yes",
            "chosen": user("yes") + assistant("no"),
            "rejected": user("yes") + assistant("hello"),
        },
    ],
)
def test_pairs_in_each_form_are_the_same(row: Any, tokens: PromptTokenizer, tmp_path: Path) -> None:
    [pair] = samples("dpo", [row], tokens, tmp_path)
    assert texts_of(tokens, pair.chosen)[1] == "no<|im_end|>"
    assert texts_of(tokens, pair.rejected)[1] == "hello<|im_end|>"
    assert pair.chosen.prompt_token_ids == pair.rejected.prompt_token_ids
    assert texts_of(tokens, pair.chosen)[0].count("yes") == 1


def test_a_shared_beginning_is_the_prompt(tokens: PromptTokenizer, tmp_path: Path) -> None:
    row = {"chosen": "yes please thanks", "rejected": "yes please think"}
    [pair] = samples("dpo", [row], tokens, tmp_path)
    assert texts_of(tokens, pair.chosen) == ("yes please", " thanks<|im_end|>")


@pytest.mark.parametrize("algorithm", ["sft", "kto", "dpo"])
@pytest.mark.parametrize("ending", ["<|im_end|>", "<|im_end|>\n", "<|im_end|><|im_end|>", ""])
@pytest.mark.parametrize("chat", [False, True])
def test_an_answer_ends_once(
    algorithm: str, ending: str, chat: bool, tokens: PromptTokenizer, tmp_path: Path
) -> None:
    def says(text: str) -> Any:
        return assistant(text + ending) if chat else text + ending

    row = {"prompt": user("yes") if chat else "yes", "completion": says("no"), "label": True}
    if algorithm == "dpo":
        row = {"prompt": row["prompt"], "chosen": says("no"), "rejected": says("hello")}
    [sample] = samples(algorithm, [row], tokens, tmp_path)
    sequence = sample.chosen if algorithm == "dpo" else sample.sequence
    assert texts_of(tokens, sequence)[1] == "no<|im_end|>"
    if algorithm == "sft" and not chat:
        [sample] = samples("sft", [{"text": f"yes no{ending}"}], tokens, tmp_path)
        assert texts_of(tokens, sample.sequence)[1] == "yes no<|im_end|>"


@pytest.mark.parametrize("completion", ["<|im_end|>", assistant("<|im_end|>\n"), assistant(" ")])
def test_an_answer_of_nothing_is_refused(
    completion: Any, tokens: PromptTokenizer, tmp_path: Path
) -> None:
    row = {"prompt": user("yes"), "completion": completion}
    with pytest.raises(InvalidRequest, match=r"line 1: the completion is empty"):
        samples("sft", [row], tokens, tmp_path)


def test_a_token_without_an_embedding_names_its_row(tiny_policy: Path, tmp_path: Path) -> None:
    """As after adding tokens to a tokenizer without resizing the model."""
    from transformers import AutoTokenizer

    folder = shutil.copytree(tiny_policy, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(folder)
    tokens = PromptTokenizer(folder, max_length=None)
    good = {"prompt": "yes", "completion": "no"}
    for row in (
        {"prompt": "<think>", "completion": "no"},
        {"prompt": "yes", "completion": "a <think> b"},
        {"prompt": user("<think>"), "completion": "no"},
    ):
        with pytest.raises(InvalidRequest, match=r"line 2: the token '<think>' has the id 384"):
            samples("sft", [good, row], tokens, tmp_path)
    with pytest.raises(InvalidRequest, match=r"line 1: the token '<think>' has the id 384"):
        samples("sft", [{"text": "<think>"}], tokens, tmp_path)
    path = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "<think>"}])
    with pytest.raises(InvalidRequest, match=r"line 1: the token '<think>' has the id 384"):
        read_prompts("ppo", open_table(str(path)), tokens, room=8, on_long="error")


def test_sharegpt_is_a_conversation(tokens: PromptTokenizer, tmp_path: Path) -> None:
    turns = [("system", "please"), ("human", "yes"), ("gpt", "no"), ("human", "why"), ("gpt", "so")]
    said = [{"from": speaker, "value": text} for speaker, text in turns]
    roles = {"human": "user", "gpt": "assistant"}
    plain = [{"role": roles.get(speaker, speaker), "content": text} for speaker, text in turns]
    expected = samples("sft", [{"messages": plain}], tokens, tmp_path)
    for row in ({"conversations": said}, {"messages": said}, {"conversations": plain}):
        found = samples("sft", [row], tokens, tmp_path)
        assert [s.sequence for s in found] == [s.sequence for s in expected]
    row = {"chosen": said[1:3], "rejected": [said[1], {"from": "gpt", "value": "hello"}]}
    [pair] = samples("dpo", [row], tokens, tmp_path)
    assert texts_of(tokens, pair.rejected)[1] == "hello<|im_end|>"
    path = write_jsonl(tmp_path / "prompts.jsonl", [{"conversations": said[:2]}])
    [prompt] = read_prompts("ppo", open_table(str(path)), tokens, room=8, on_long="error").samples
    assert prompt.asked.rendered.endswith("yes<|im_end|>\n<|im_start|>assistant\n")
    for turn, problem in (
        ({"from": "bot", "value": "x"}, "message 2, from: 'bot' is not system, human, gpt or tool"),
        ({"from": "gpt", "value": 3}, "message 2, value: must be a string"),
    ):
        with pytest.raises(InvalidRequest, match=f"line 1: conversations {problem}"):
            samples("sft", [{"conversations": [said[1], turn]}], tokens, tmp_path)


def test_functions_are_shown_as_the_service_shows_them(tmp_path: Path) -> None:
    tokens = PromptTokenizer(make_obliging_policy(tmp_path / "model"), max_length=None)
    # As Arrow has them: keys that other rows' schemas have are null.
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "depth": None}}
    function = {"name": "weather", "description": "Look it up.", "parameters": schema}
    turns = user("rain?") + assistant("no")
    rows: list[Any] = [
        {"messages": turns, "tools": [{"type": "function", "function": function}]},
        {"messages": turns, "tools": [function]},
        {"messages": turns, "tools": json.dumps([function])},
    ]
    pair = {"prompt": user("rain?"), "completion": assistant("no"), "tools": [function]}
    first, *others = [s.sequence for s in samples("sft", rows, tokens, tmp_path)]
    others += [s.sequence for s in samples("sft", [pair], tokens, tmp_path)]
    assert others == [first] * 3
    prompt, answer = texts_of(tokens, first)
    served = tokens.tokenization.tokenize(
        Prompt(
            messages=(ChatMessage(role="user", content="rain?"),),
            tool_use=ToolUse(
                tools=(
                    Tool(
                        name="weather",
                        description="Look it up.",
                        parameters='{"type": "object", "properties": {"city": {"type": "string"}}}',
                    ),
                )
            ),
        )
    )
    assert first.prompt_token_ids == served.token_ids
    assert "weather" in prompt
    assert answer == "no<|im_end|>"


@pytest.mark.parametrize(
    ("tools", "problem"),
    [
        ("[", "tools is text that is not the JSON of a list of tools"),
        ({"name": "f"}, "tools is not a list of tools"),
        ([{"type": "function"}], "tools tool 1 has no function with a name"),
        ([{"name": "f", "parameters": "none"}], "tools tool 1: description must be text"),
    ],
)
def test_functions_that_are_none_name_their_row(tools: Any, problem: str, tmp_path: Path) -> None:
    tokens = PromptTokenizer(make_obliging_policy(tmp_path / "model"), max_length=None)
    row = {"messages": user("rain?") + assistant("no"), "tools": tools}
    with pytest.raises(InvalidRequest, match=problem):
        samples("sft", [row], tokens, tmp_path)


def test_alpaca_is_a_question_and_its_answer(tokens: PromptTokenizer, tmp_path: Path) -> None:
    asked = {"instruction": "yes", "input": "please", "output": "no", "text": "not this"}
    rows = [asked, {**asked, "input": ""}, {**asked, "input": None}]
    expected = [
        {"prompt": user(question), "completion": assistant("no")}
        for question in ("yes\n\nplease", "yes", "yes")
    ]
    found = samples("sft", rows, tokens, tmp_path)
    wanted = samples("sft", expected, tokens, tmp_path)
    assert [s.sequence for s in found] == [s.sequence for s in wanted]
    [thumb] = samples("kto", [{**asked, "label": "down"}], tokens, tmp_path)
    assert (thumb.sequence, thumb.desirable) == (wanted[0].sequence, False)
    pair = {"instruction": "yes", "input": "please", "chosen": "no", "rejected": "hello"}
    [made] = samples("dpo", [pair], tokens, tmp_path)
    assert made.chosen == wanted[0].sequence
    [read] = read_texts(open_table(str(write_jsonl(tmp_path / "a.jsonl", [pair])))).samples
    assert (read.prompt, read.chosen, read.rejected) == ("yes\n\nplease", "no", "hello")
    path = write_jsonl(tmp_path / "prompts.jsonl", [{"instruction": "yes", "output": "no"}])
    [prompt] = read_prompts("ppo", open_table(str(path)), tokens, room=8, on_long="error").samples
    assert prompt.asked.messages[0].content == "yes"
    with pytest.raises(InvalidRequest, match="line 2: output is empty"):
        samples("sft", [asked, {**asked, "output": ""}], tokens, tmp_path)


def test_answers_with_the_same_tokens_are_no_pair(tokens: PromptTokenizer, tmp_path: Path) -> None:
    row = {"prompt": "yes", "completions": ["no", "please", "no"]}
    pairs = samples("dpo", [row], tokens, tmp_path)
    assert [pair.sample_id[-6:] for pair in pairs] == ["pair 1", "pair 3"]
    assert [pair.weight for pair in pairs] == [1 / 2] * 2
    with pytest.raises(InvalidRequest, match="the answers have the same tokens"):
        samples("dpo", [{"prompt": "yes", "completions": ["no", "no"]}], tokens, tmp_path)


def test_a_ranking_is_all_its_pairs(tokens: PromptTokenizer, tmp_path: Path) -> None:
    row = {"prompt": "yes", "completions": ["no", "please", "hello"]}
    pairs = samples("dpo", [row], tokens, tmp_path)
    found = [
        (texts_of(tokens, p.chosen)[1][:2], texts_of(tokens, p.rejected)[1][:2]) for p in pairs
    ]
    assert found == [("no", "pl"), ("no", "he"), ("pl", "he")]
    assert sum(pair.weight for pair in pairs) == pytest.approx(1.0)


def test_labels_in_each_form(tokens: PromptTokenizer, tmp_path: Path) -> None:
    for label, expected in ((True, True), (0, False), ("up", True), ("False", False)):
        [thumb] = samples("kto", [{**THUMB, "label": label}], tokens, tmp_path)
        assert thumb.desirable is expected
    chosen, rejected = samples("kto", [PAIR], tokens, tmp_path)
    assert (chosen.desirable, rejected.desirable) == (True, False)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_numbers_as_data_frames_write_them(
    suffix: str, tokens: PromptTokenizer, tmp_path: Path
) -> None:
    """A column that lacks some values has floats; what is missing is NaN, null or nothing."""
    import pandas

    rows: list[dict[str, Any]] = [
        {"prompt": "a", "completion": "b", "label": 1, "user": 7, "rating": 1},
        {"prompt": "a", "completion": "c", "label": 0, "user": 7.0, "rating": 3},
        {"prompt": "a", "completion": "d", "label": 1, "user": None, "rating": 5},
        {"prompt": "a", "completion": "e", "label": None, "user": 7, "rating": 2},
    ]
    frame = pandas.DataFrame(rows)
    assert str(frame.dtypes["label"]) == "float64"
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path) if suffix == "csv" else frame.to_parquet(path)
    table = open_table(str(path))
    flags = convert(table, lambda row: [row["label"].flag()] if "label" in row else [], "error")
    assert flags.samples == [True, False, True]
    with pytest.raises(InvalidRequest, match=r"(line 5|line 4|row 4): label is (mis|null|emp)"):
        read_samples("kto", table, tokens, "error")
    # Users 7 and 7.0 are one, and the rating without a user is another's.
    users = convert(table, lambda row: [user_of(row)], "error").samples
    assert users[0] == users[1] == users[3]
    assert users[2] == ""


@pytest.mark.parametrize(
    "value", [True, 1, 1.0, "1", "1.0", " TRUE ", "True", "yes", Decimal("1.00")]
)
def test_what_means_true(value: Any) -> None:
    assert Field(row={"label": value}, place="p", name="label").flag() is True


@pytest.mark.parametrize("value", [False, 0, 0.0, "0", "0.0", "FALSE", "down", Decimal("0")])
def test_what_means_false(value: Any) -> None:
    assert Field(row={"label": value}, place="p", name="label").flag() is False


@pytest.mark.parametrize("value", [2, -1, 0.5, "maybe", [1], {}, "nan", 10**400])
def test_what_means_neither(value: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"p: label is .* not true or false"):
        Field(row={"label": value}, place="p", name="label").flag()


@pytest.mark.parametrize(
    ("value", "expected"), [(2, 2), (2.0, 2), ("2.0", 2), (" 2 ", 2), (Decimal("2.50"), 2.5)]
)
def test_what_is_a_number(value: Any, expected: float) -> None:
    assert Field(row={"rating": value}, place="p", name="rating").number() == expected


@pytest.mark.parametrize("value", [True, "two", [2], 10**400, "1e999"])
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"p: rating is .* not a (finite )?number"):
        Field(row={"rating": value}, place="p", name="rating").number()


def test_a_margin_that_a_data_frame_lacks_is_none(tmp_path: Path) -> None:
    rows = [{**PAIR, "margin": margin} for margin in (0.5, float("nan"), None, "")]
    found = read_texts(open_table(str(write_jsonl(tmp_path / "a.jsonl", rows))))
    assert [sample.margin for sample in found.samples] == [0.5, 0.0, 0.0, 0.0]


def test_ratings_are_in_deviations_of_their_user(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completion": "b", "rating": rating, "user": name}
        for name, rating in (("ann", 1), ("ann", 3), ("bob", 9), ("bob", 9))
    ]
    path = write_jsonl(tmp_path / "ratings.jsonl", rows)
    # Of all: mean 5.5, variance 12.75. With one such rating Ann has mean 9.5 / 3 and variance
    # 7.6389, Bob 23.5 / 3 and 6.9722.
    expected = [-2.16667 / 2.76386, -0.16667 / 2.76386, 1.16667 / 2.64050, 1.16667 / 2.64050]
    found = [s.rating for s in read_texts(open_table(str(path))).samples]
    assert found == pytest.approx(expected, abs=1e-5)


def test_ratings_of_one_user_are_plain_z_scores(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "score": score} for score in (1, 2, 3, 6)]
    path = write_jsonl(tmp_path / "scores.jsonl", rows)
    found = [s.rating for s in read_texts(open_table(str(path))).samples]
    assert found == pytest.approx([(score - 3) / 3.5**0.5 for score in (1, 2, 3, 6)])


def test_the_reward_model_reads_conversations_as_the_service_does(tmp_path: Path) -> None:
    row = {"prompt": user("yes"), "chosen": assistant("no"), "rejected": assistant("please")}
    path = write_jsonl(tmp_path / "pairs.jsonl", [{**row, "margin": 0.5}])
    [sample] = read_texts(open_table(str(path))).samples
    assert (sample.prompt, sample.chosen, sample.rejected) == ("yes", "no", "please")
    assert sample.margin == 0.5


def test_prompts_carry_their_other_columns(tokens: PromptTokenizer, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": user("yes"), "topic": "a"}])
    [row] = read_prompts("ppo", open_table(str(path)), tokens, room=8, on_long="error").samples
    assert row.asked.text == "yes"
    assert row.columns == {"topic": "a"}


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    import datasets
    import pyarrow
    import pyarrow.parquet

    rows = [PAIR, {**PAIR, "prompt": "line\nbreak"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text(
        'prompt,chosen,rejected\nyes,no,please\n"line\nbreak",no,please\n'
    )
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(
        tmp_path / "splits"
    )
    for name in ("a.jsonl", "a.json", "a.parquet", "a.csv", "saved", "splits", "splits:train"):
        table = open_table(str(tmp_path / name))
        assert list(table.rows) == rows, name
        assert table.sha256() == open_table(str(tmp_path / "a.jsonl")).sha256()
    assert open_table(str(tmp_path / "a.csv")).place(1).endswith("a.csv, line 3")
    with pytest.raises(NotFound, match="no split 'test', only train"):
        open_table(f"{tmp_path / 'splits'}:test")


def test_a_csv_file_as_pandas_writes_it(tmp_path: Path) -> None:
    """With its index, and with an answer above the csv module's limit of 131,072 characters."""
    import pandas

    rows = [{**PAIR, "chosen": "x" * 200_000}, PAIR]
    pandas.DataFrame(rows).to_csv(tmp_path / "a.csv")
    assert list(open_table(str(tmp_path / "a.csv")).rows) == rows
    (tmp_path / "b.csv").write_text("prompt,chosen\na,b,c\n")
    with pytest.raises(InvalidRequest, match=r"line 2: fields do not match prompt, chosen"):
        open_table(str(tmp_path / "b.csv"))


@pytest.mark.parametrize("line", [1, 3])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "json"])
def test_bytes_that_are_no_text_are_told_with_their_line(
    tmp_path: Path, suffix: str, line: int
) -> None:
    lines = [b'"prompt"' if suffix == "csv" else b'{"prompt": "a"}'] * 5
    lines[line - 1] = '{"prompt": "über"}'.encode("latin-1")
    (tmp_path / f"a.{suffix}").write_bytes(b"\n".join(lines))
    with pytest.raises(InvalidRequest, match=rf"a.{suffix}, line {line}: not UTF-8 text"):
        open_table(str(tmp_path / f"a.{suffix}"))


def test_separators_within_a_text_end_no_line(tmp_path: Path) -> None:
    text = "one\u2028two\u2029three\x85four"
    line = json.dumps({"prompt": text}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_text(f"{line}\r\n{line}\n", encoding="utf-8")
    assert [row["prompt"] for row in open_table(str(tmp_path / "a.jsonl")).rows] == [text, text]


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize(
    ("column", "problem"),
    [('"\\ud800"', "other is not valid Unicode"), ("[" * 100_000 + "]" * 100_000, "not JSON")],
)
def test_what_is_wrong_in_a_column_that_nobody_reads_is_told(
    tmp_path: Path, suffix: str, column: str, problem: str
) -> None:
    row = f'{{"prompt": "a", "other": {column}}}'
    path = tmp_path / f"a.{suffix}"
    path.write_text(row if suffix == "jsonl" else f"[{row}]")
    with pytest.raises(InvalidRequest, match=problem):
        open_table(str(path))


def test_a_conversation_is_what_the_api_accepts(tokens: PromptTokenizer, tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "ye"}, {"type": "text", "text": "s"}]
    system, developer = ({"role": role, "content": "no"} for role in ("system", "developer"))
    rows = [
        {"prompt": [system, {"role": "user", "content": "yes"}], "completion": assistant("no")},
        {"prompt": [developer, {"role": "user", "content": parts}], "completion": assistant("no")},
    ]
    one, two = samples("sft", rows, tokens, tmp_path)
    assert one.sequence == two.sequence
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(InvalidRequest, match="prompt message 1, content: only text parts"):
        samples(
            "sft",
            [{"prompt": [{"role": "user", "content": image}], "completion": "no"}],
            tokens,
            tmp_path,
        )


@pytest.mark.parametrize(
    ("algorithm", "row", "problem"),
    [
        ("dpo", {**PAIR, "chosen": ""}, "chosen is empty"),
        ("dpo", {**PAIR, "chosen": None}, "chosen is null"),
        ("dpo", {**PAIR, "chosen": 3}, "chosen is a int, not text"),
        ("dpo", {**PAIR, "chosen": float("nan")}, "chosen is missing (NaN)"),
        ("dpo", {**PAIR, "chosen": "please"}, "chosen and rejected are the same"),
        ("dpo", {"prompt": "yes", "chosen": "no"}, "rejected is missing"),
        ("dpo", {**PAIR, "chosen": [{"role": "bot", "content": "no"}]}, "chosen message 1, role"),
        ("dpo", {**PAIR, "chosen": [{"role": "assistant"}]}, "chosen message 1, content"),
        ("kto", {**THUMB, "completion": "  "}, "completion is empty"),
        ("kto", {**THUMB, "label": "maybe"}, "label is 'maybe', not true or false"),
        ("kto", {**THUMB, "label": float("nan")}, "label is missing (NaN)"),
        ("sft", {"messages": user("yes")}, "no answer of the assistant"),
        ("sft", {"messages": []}, "messages is empty"),
        ("sft", {"prompt": "yes", "completion": user("no")}, "not the assistant's"),
        ("dpo", {"prompt": "yes", "completions": ["no"]}, "not a list of two or more"),
        ("dpo", {"prompt": "yes", "completions": ["no", 1]}, "completions[1] is a int"),
    ],
)
def test_a_problem_names_its_row(
    algorithm: str, row: Any, problem: str, tokens: PromptTokenizer, tmp_path: Path
) -> None:
    good = {key: value for key, value in row.items() if key not in ("messages",)}
    good = {"dpo": PAIR, "kto": THUMB, "sft": {"prompt": "yes", "completion": "no"}}[algorithm]
    if "messages" in row:
        good = {"messages": user("yes") + assistant("no")}
    if "completions" in row:
        good = {"prompt": "yes", "completions": ["no", "please"]}
    with pytest.raises(InvalidRequest) as caught:
        samples(algorithm, [good, row], tokens, tmp_path)
    assert "data.jsonl, line 2: " in caught.value.message
    assert problem in caught.value.message


def test_a_rating_that_is_no_number_names_its_row(tmp_path: Path) -> None:
    for value, problem in (
        ("good", "'good', not a number"),
        (float("nan"), "missing (NaN)"),
        (None, "null"),
    ):
        row = {"prompt": "a", "completion": "b", "rating": value}
        path = write_jsonl(tmp_path / "ratings.jsonl", [{**row, "rating": 1}, row])
        with pytest.raises(InvalidRequest) as caught:
            read_texts(open_table(str(path)))
        assert "ratings.jsonl, line 2: rating is" in caught.value.message
        assert problem in caught.value.message


def test_wrong_columns_name_both_sides(tokens: PromptTokenizer, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        samples("dpo", [{"question": "a", "answer": "b"}], tokens, tmp_path)
    message = caught.value.message
    assert "dpo learns from the columns prompt, chosen, rejected; or instruction" in message
    assert "the data has question, answer" in message


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", "", "the file is empty"),
        ("a.jsonl", "\n\n", "no rows"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": ', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"prompt": "a"}\n[1]\n', "a.jsonl, line 2: a list, not an object"),
        ("a.json", '{"prompt": "a"}', "not a JSON list of objects"),
        ("a.json", "[", "not JSON"),
        ("a.csv", "prompt,label\n", "no rows"),
        ("a.csv", "prompt,label\na,1\nb\n", "a.csv, line 3: fields do not match prompt, label"),
        ("a.parquet", "nonsense", "cannot be read as Parquet"),
        ("a.txt", "hello", "not one of .jsonl, .json, .parquet, .csv"),
    ],
)
def test_files_that_cannot_be_read_are_told(
    name: str, content: str, problem: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidRequest) as caught:
        open_table(str(tmp_path / name))
    assert problem in caught.value.message


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file or folder"):
        open_table(str(tmp_path / "absent.jsonl"))
    with pytest.raises(NotFound, match="no such file or folder"):
        open_table("data/absent.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(NotFound, match="not a folder of `save_to_disk`"):
        open_table(str(tmp_path / "folder"))


def test_rows_too_long_are_an_error_or_left_out(tokens: PromptTokenizer, tmp_path: Path) -> None:
    rows = [PAIR, {**PAIR, "prompt": "yes " * 600}]
    with pytest.raises(InvalidRequest) as caught:
        samples("dpo", rows, tokens, tmp_path)
    assert "data.jsonl, line 2: " in caught.value.message
    assert "more than the 512 that fit" in caught.value.message
    assert "on_long=drop" in caught.value.message
    data = read_samples("dpo", open_table(str(tmp_path / "data.jsonl")), tokens, "drop")
    assert (len(data.samples), data.rows, data.dropped) == (1, 2, 1)
    path = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "yes " * 250}])
    assert read_prompts("ppo", open_table(str(path)), tokens, room=4, on_long="error").samples
    with pytest.raises(InvalidRequest, match="and 300 for the completion, more than the 512"):
        read_prompts("ppo", open_table(str(path)), tokens, room=300, on_long="error")
    with pytest.raises(InvalidRequest, match="every row is too long"):
        read_prompts("ppo", open_table(str(path)), tokens, room=300, on_long="drop")


def test_rows_are_converted_in_order(tmp_path: Path) -> None:
    table = open_table(str(write_jsonl(tmp_path / "a.jsonl", [{"n": 1}, {"n": 2}])))
    assert convert(table, lambda row: [row["n"].number()] * 2, "error").samples == [1, 1, 2, 2]
