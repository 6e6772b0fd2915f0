"""What the gate asks every version: prompts that are never learned from."""

from collections.abc import Sequence
from dataclasses import dataclass

from tuneloop.errors import SettingsError, TuneloopError
from tuneloop.learner.data.prompt_rows import PromptRow, prompt_rows
from tuneloop.learner.data.table import Table
from tuneloop.learner.prompts.prompt_sets import Prompts, tokens_of
from tuneloop.learner.settings import LearnerSettings

BUILT_IN = (
    "Name three things that float on water.",
    "Why does bread rise in the oven? Answer in one sentence.",
    "Write a short note that thanks a neighbour for watering the plants.",
    "Which is heavier, a kilogram of feathers or a kilogram of nails?",
    "Translate into French: Where is the railway station?",
    "What is 17 plus 26?",
    "Give one reason to sleep well before an exam.",
    "Finish this sentence: The lighthouse keeper opened the door and",
    "Describe the colour green to somebody who has never seen it.",
    "List the days of the week that begin with the letter T.",
    "How do I boil an egg?",
    "Say politely that you cannot come to the party on Saturday.",
)
"""Used if `eval_prompts` names no file: short prompts of many kinds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePrompts:
    """The prompts, and what is needed to check their answers."""

    rows: Sequence[PromptRow]
    special_ids: frozenset[int]
    """Tokens that no answer may contain, except for the one that ends it."""


def load_gate_prompts(settings: LearnerSettings, prompts: Prompts) -> GatePrompts | None:
    """Return the user's first eval prompts, or the built-in ones; None without a gate.

    Raises `SettingsError`.
    """
    if settings.release not in ("gate", "gate+canary"):
        return None
    tokens = tokens_of(settings)
    rows = prompts.evaluation
    if not rows:
        table = Table(name="built-in prompts", rows=[{"prompt": text} for text in BUILT_IN])
        try:
            rows = prompt_rows(table, tokens, settings.gate.max_tokens, reader="gate")
        except TuneloopError as error:
            raise SettingsError(f"gate: {error.message}", param="gate") from error
    return GatePrompts(
        rows=rows[: settings.gate.prompts],
        special_ids=frozenset(map(int, tokens.tokenization.tokenizer.all_special_ids)),
    )
