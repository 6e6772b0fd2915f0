"""Text that grows a token at a time, and stop strings."""

from hypothesis import given
from hypothesis import strategies as st

from tuneloop.generation.formats.detokenization import Detokenizer, StopStrings


class ByteTokenizer:
    """Token ids are bytes: the hardest case for streaming."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return bytes(token_ids).decode(errors="replace")


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_pieces_add_up_to_the_text_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    detokenizer, stops = Detokenizer(tokenizer=ByteTokenizer()), StopStrings(stop=stop)
    data, pieces = text.encode(), []
    for position, byte in enumerate(data):
        ends = position == len(data) - 1
        pieces.append(stops.add(detokenizer.add(byte, ends=ends), ends=ends))
        if stops.stopped_by:
            break
    cuts = [text.index(s) for s in stop if s in text]
    if not cuts:
        assert "".join(pieces) == text
    else:
        # Which of several stop strings is complete first decides; none of them is in the text.
        assert stops.stopped_by in stop
        assert text.startswith("".join(pieces) + stops.stopped_by)
        assert text.startswith("".join(pieces))
        assert not any(s in "".join(pieces) for s in stop)
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text
