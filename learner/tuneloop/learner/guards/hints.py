"""Which comments may be hints: what a user writes is shown to the model that teaches.

A hint never is more than words in a user's turn, and it teaches one answer, with the weight of one
judgement (see `batching.trust`): "ignore the above" is a remark like any other. What is refused
here is no remark: nothing, an essay, or text that no person types.
"""

import unicodedata

MOST_CHARACTERS = 500
"""A remark is shorter; what is longer would be a prompt of its own."""
PLAIN = frozenset("\n\t")
HIDDEN = ("Cc", "Cf", "Co", "Cs", "Cn")
"""Unicode categories of what does not show: control and format characters, and private ones."""
JOINERS = frozenset("\u200c\u200d")
"""Format characters that some scripts and emoji are written with."""


def problem_of_hint(comment: str) -> str | None:
    """Return why a comment cannot be a hint, or None."""
    if not comment.strip():
        return "the comment is empty"
    if len(comment) > MOST_CHARACTERS:
        return f"the comment has {len(comment)} characters; a hint has {MOST_CHARACTERS} at most"
    for character in comment:
        shows = unicodedata.category(character) not in HIDDEN
        if not (shows or character in PLAIN or character in JOINERS):
            return f"the comment has a character that does not show (U+{ord(character):04X})"
    return None
