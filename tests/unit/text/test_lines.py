"""Lines end at line feeds: JSON may hold every other separator as it is."""

import json

from hypothesis import given
from hypothesis import strategies as st

from tuneloop.text.lines import lines_of, split_lines

SEPARATORS = "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e\r"
characters = st.characters(exclude_categories=["Cs"])
texts = st.text(st.sampled_from('"\\ é漢😀' + SEPARATORS + "\n") | characters, max_size=12)


def test_lines_by_hand() -> None:
    assert split_lines("") == []
    assert split_lines("a\n\nb") == ["a", "", "b"]
    assert split_lines("a\r\nb\n") == ["a", "b"]
    assert split_lines(f"x{SEPARATORS}y\n") == [f"x{SEPARATORS}y"]


@given(rows=st.lists(texts), cuts=st.lists(st.integers(1, 7), min_size=1), ends=st.booleans())
def test_rows_come_back_however_they_are_cut(rows: list[str], cuts: list[int], ends: bool) -> None:
    lines = [json.dumps({"text": row}, ensure_ascii=False) for row in rows]
    data = ("\n".join(lines) + ("\n" if ends and lines else "")).encode()
    pieces, at = [], 0
    while at < len(data):
        size = cuts[len(pieces) % len(cuts)]
        pieces.append(data[at : at + size])
        at += size
    assert [json.loads(line)["text"] for line in lines_of(pieces)] == rows
    assert split_lines(data.decode()) == lines


def test_a_mark_at_the_beginning_and_bytes_that_are_no_text() -> None:
    assert list(lines_of([b"\xef\xbb", b"\xbfa\n", b"\xff"])) == ["a", "\ufffd"]
