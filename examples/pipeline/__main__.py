"""A small data set for the classical pipeline: `python -m examples.pipeline FOLDER`.

Questions with one right answer. The demonstrations answer in a sentence, and three quarters of them
go on talking; the preferences say that the sentence alone is better. So supervised training learns
to answer, the reward model learns what is liked, and PPO has something left to improve.

A reward model that is shown nothing but short answers beside long ones learns that less is more,
and PPO then ends with no answer at all. Half of the preferences are therefore of answers as short
as the good one, or shorter: wrong ones, and those that say nothing.

    demonstrations.jsonl   messages                    for tuneloop train sft
    preferences.jsonl      prompt, chosen, rejected    for tuneloop train reward-model
    prompts.jsonl          prompt                      for tuneloop train ppo
    held_out.jsonl         prompt                      for tuneloop evaluate; in none of the others

The same every time.
"""

import json
import random
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Germany": "Berlin", "Austria": "Vienna", "Poland": "Warsaw", "Greece": "Athens",
    "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "Ireland": "Dublin", "Hungary": "Budapest", "Japan": "Tokyo", "China": "Beijing",
    "India": "New Delhi", "Egypt": "Cairo", "Kenya": "Nairobi", "Canada": "Ottawa",
    "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago", "Australia": "Canberra",
    "Thailand": "Bangkok", "Vietnam": "Hanoi", "Turkey": "Ankara", "Belgium": "Brussels",
    "Iceland": "Reykjavik", "Russia": "Moscow", "Argentina": "Buenos Aires", "Iran": "Tehran",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "early": "late", "wet": "dry", "full": "empty",
    "fast": "slow", "high": "low", "light": "dark", "old": "young", "open": "closed",
    "rich": "poor", "soft": "hard", "strong": "weak", "true": "false", "wide": "narrow",
    "happy": "sad", "near": "far", "thick": "thin", "quiet": "loud", "first": "last",
    "clean": "dirty", "deep": "shallow", "cheap": "expensive", "safe": "dangerous",
    "sharp": "blunt", "sweet": "bitter", "tall": "short", "brave": "cowardly",
    "easy": "difficult", "rough": "smooth", "heavy": "light", "begin": "end",
}  # fmt: skip
YOUNG = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "horse": "foal", "sheep": "lamb",
    "goat": "kid", "pig": "piglet", "hen": "chick", "duck": "duckling", "goose": "gosling",
    "swan": "cygnet", "bear": "cub", "lion": "cub", "deer": "fawn", "frog": "tadpole",
    "kangaroo": "joey", "owl": "owlet", "fox": "cub", "seal": "pup", "elephant": "calf",
}  # fmt: skip
COLOURS = {
    "grass": "green", "snow": "white", "a ripe tomato": "red", "coal": "black",
    "a lemon": "yellow", "the sky on a clear day": "blue", "a ripe banana": "yellow",
    "milk": "white", "a carrot": "orange", "chocolate": "brown", "a ruby": "red",
    "an emerald": "green", "a raven": "black", "a sunflower": "yellow", "salt": "white",
    "a sapphire": "blue",
}  # fmt: skip
CHATTER = (
    "That is a very good question, and I hope that this answer helps you.",
    "There is of course a lot more that one could say about this interesting subject.",
    "If you would like to learn more, there are many books that explain it in detail.",
    "It is always worth looking such things up, because one can easily mix them up.",
)
NOTHING = (
    "Yes.",
    "I do not know.",
    "Good question!",
    "...",
    "It depends.",
    "The answer.",
    "Ask me something else.",
    "Sorry.",
)
HELD_OUT = 24
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question with one right answer, and one that is wrong."""

    text: str
    answer: str
    wrong: str


def questions() -> list[Question]:
    """Every question."""
    found = kind(CAPITALS, "What is the capital of {0}?", "The capital of {0} is {1}.")
    found += kind(OPPOSITES, 'What is the opposite of "{0}"?', 'The opposite of "{0}" is "{1}".')
    found += kind(YOUNG, "What is a young {0} called?", "A young {0} is called a {1}.")
    found += kind(COLOURS, "What colour is {0}?", "The colour of {0} is {1}.")
    sums = {f"{a} plus {b}": str(a + b) for a in (2, 5, 7, 9) for b in (3, 4, 6, 8)}
    sums |= {f"{a} times {b}": str(a * b) for a in (2, 3, 5, 10) for b in (2, 4, 6, 7)}
    found += kind(sums, "What is {0}?", "{0} is {1}.")
    after = {str(n): str(n + 1) for n in range(11, 91, 5)}
    found += kind(after, "Which number comes after {0}?", "The number after {0} is {1}.")
    return found


def kind(answers: Mapping[str, str], question: str, sentence: str) -> list[Question]:
    """Return the questions of one kind; the wrong answer of each is right for another."""
    others = list(answers.values())
    found = []
    for i, (asked, answer) in enumerate(answers.items()):
        wrong = next(o for o in others[i + 1 :] + others if o != answer)
        found.append(
            Question(
                text=question.format(asked),
                answer=sentence.format(asked, answer),
                wrong=sentence.format(asked, wrong),
            )
        )
    return found


def user(content: str) -> list[dict[str, str]]:
    """A question as a conversation."""
    return [{"role": "user", "content": content}]


def assistant(content: str) -> list[dict[str, str]]:
    """An answer as a turn."""
    return [{"role": "assistant", "content": content}]


def make() -> dict[str, list[Row]]:
    """The rows of each file."""
    source = random.Random(0)
    asked = questions()
    source.shuffle(asked)
    held_out, learned = asked[:HELD_OUT], asked[HELD_OUT:]
    demonstrations: list[Row] = []
    preferences: list[Row] = []
    for i, question in enumerate(learned):
        short = question.answer
        long = f"{short} {source.choice(CHATTER)}"
        demonstration = short if i % 4 == 0 else long
        demonstrations.append({"messages": user(question.text) + assistant(demonstration)})
        worse = question.wrong if i % 2 else NOTHING[i // 2 % len(NOTHING)]
        preferences += [
            {
                "prompt": user(question.text),
                "chosen": assistant(short),
                "rejected": assistant(rejected),
            }
            for rejected in (long, worse)
        ]
    return {
        "demonstrations.jsonl": demonstrations,
        "preferences.jsonl": preferences,
        "prompts.jsonl": [{"prompt": user(question.text)} for question in learned],
        "held_out.jsonl": [{"prompt": user(question.text)} for question in held_out],
    }


def write(path: Path, rows: Iterable[Row]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def main(folder: Path) -> None:
    """Write every file into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in make().items():
        write(folder / name, rows)
        print(f"{folder / name}: {len(rows)} rows")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "pipeline"))
