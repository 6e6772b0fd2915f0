"""Where words begin: a prompt that two texts share must not end inside a word of their answers."""

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence

unspaced_scripts: Sequence[range] = (
    range(0x0E00, 0x0F00),  # Thai, Lao
    range(0x0F00, 0x10A0),  # Tibetan, Burmese
    range(0x1780, 0x1800),  # Khmer
    range(0x2E80, 0xA4D0),  # Chinese, Japanese and their punctuation, Yi
    range(0xF900, 0xFB00),
    range(0xFE30, 0xFE50),
    range(0xFF00, 0xFFF0),  # full-width forms
    range(0x1B000, 0x1B170),  # more kana
    range(0x20000, 0x40000),  # rare ideographs
)
"""Characters between which any place may be the beginning of a word, in order."""
CLOSING = frozenset(":;?!)]}>|")
"""A word may begin at once after these: templates of prompts end in them."""
REGIONAL = range(0x1F1E6, 0x1F200)
"""Two of them are a flag."""
SKIN_TONES = range(0x1F3FB, 0x1F400)
ZERO_WIDTH_JOINER = "\u200d"


def cut_after_prompt(one: str, other: str) -> int:
    """Return the length of the prompt that two texts begin with, 0 if there is none.

    It ends at the last place in what both share where a word begins in either, and leaves something
    of both. A blank belongs to the word after it, as in most tokenizers; a line break to the
    prompt.
    """
    shortest = min(len(one), len(other))
    shared = next((i for i in range(shortest) if one[i] != other[i]), shortest)
    return next(
        (
            length
            for length in range(min(shared, shortest - 1), 0, -1)
            if begins_word(one, length) and begins_word(other, length)
        ),
        0,
    )


def begins_word(text: str, at: int) -> bool:
    """Return whether the character at `at`, which is not the first, begins a word."""
    before, after = text[at - 1], text[at]
    if after.isspace():
        # The first blank of several; a line break ends what is before it.
        return not before.isspace() or (before == "\n" and after != "\n")
    if before.isspace():
        return before not in " \t"
    if is_joined(before, after):
        return False
    if before in CLOSING:
        return not (after.isdigit() and text[: at - 1][-1:].isdigit())
    return is_unspaced(before) or is_unspaced(after)


def is_joined(before: str, after: str) -> bool:
    """Return whether two characters are parts of what a reader sees as one."""
    return (
        unicodedata.category(after).startswith("M")
        or ZERO_WIDTH_JOINER in (before, after)
        or ord(after) in SKIN_TONES
        or (ord(before) in REGIONAL and ord(after) in REGIONAL)
    )


def is_unspaced(character: str) -> bool:
    """Return whether the character is of a script that has no blanks between words."""
    found = bisect_right(unspaced_scripts, ord(character), key=lambda script: script.start)
    return found > 0 and ord(character) in unspaced_scripts[found - 1]
