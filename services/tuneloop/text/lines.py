"""Lines of text, which end at a line feed and at nothing else.

`str.splitlines`, and the HTTP libraries that use it, also end a line at U+2028, U+2029, U+0085 and
others. JSON may have these as they are within a string, so a line of JSON would be cut there.
"""

import codecs
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator


def decode_text(data: bytes) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raises `ValueError` that names the line of the first byte that is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line}: not UTF-8 text: {error.reason}") from None


def split_lines(text: str) -> list[str]:
    """Return the lines of a text without the line feeds, or CR LF, that end them."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


class LineDecoder:
    """Lines of UTF-8 that comes in pieces; bytes that are none become U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._rest: list[str] = []

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that this completes."""
        text = self._decoder.decode(data)
        if "\n" not in text:
            self._rest.append(text)
            return []
        whole, _, rest = text.rpartition("\n")
        lines = split_lines("".join([*self._rest, whole, "\n"]))
        self._rest = [rest]
        return lines

    def end(self) -> list[str]:
        """Return the last line, if it has no end."""
        return split_lines("".join([*self._rest, self._decoder.decode(b"", final=True)]))


def lines_of(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of UTF-8 that comes in pieces."""
    decoder = LineDecoder()
    for piece in pieces:
        yield from decoder.feed(piece)
    yield from decoder.end()


async def async_lines_of(pieces: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """Yield the lines of UTF-8 that comes in pieces."""
    decoder = LineDecoder()
    async for piece in pieces:
        for line in decoder.feed(piece):
            yield line
    for line in decoder.end():
        yield line
