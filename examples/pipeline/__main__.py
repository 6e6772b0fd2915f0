"""A small data set for the classical pipeline: `python -m examples.pipeline FOLDER`.

Questions with one right answer. The demonstrations are as people write them, a quarter of them
short and the others talkative; the preferences say that the short ones are better. So supervised
training learns to answer, the reward model learns what is liked, and PPO has something left to
improve.

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
    "That is a very good question, and I am glad that you asked it. {answer} I hope that this "
    "helps, and please let me know if there is anything else that you would like to know.",
    "Let me think about that for a moment. {answer} There is of course a lot more that one could "
    "say about this interesting subject, which people have thought about for a long time.",
    "Many people wonder about this. {answer} If you would like to learn more about it, there are "
    "many books and websites that explain it in much more detail.",
    "Thank you for your question. {answer} It is always worth looking such things up, because "
    "one can easily mix them up with something else, and it is good to be sure.",
)
HELD_OUT = 24
Row = Mapping[str, Any]


def questions() -> list[tuple[str, str]]:
    """Every question with its short answer."""
    found = [(f"What is the capital of {c}?", f"{city}.") for c, city in CAPITALS.items()]
    found += [(f'What is the opposite of "{w}"?', f"{o}.") for w, o in OPPOSITES.items()]
    found += [(f"What is a young {a} called?", f"A {y}.") for a, y in YOUNG.items()]
    found += [(f"What colour is {t}?", f"{c}.") for t, c in COLOURS.items()]
    found += [(f"What is {a} plus {b}?", f"{a + b}.") for a in (2, 5, 7, 9) for b in (3, 4, 6, 8)]
    found += [(f"What is {a} times {b}?", f"{a * b}.") for a in (2, 3, 5, 10) for b in (2, 4, 6, 7)]
    found += [(f"Which number comes after {n}?", f"{n + 1}.") for n in range(11, 91, 5)]
    return [(question, answer[0].upper() + answer[1:]) for question, answer in found]


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
    for i, (question, short) in enumerate(learned):
        long = source.choice(CHATTER).format(answer=short)
        demonstration = short if i % 4 == 0 else long
        demonstrations.append({"messages": user(question) + assistant(demonstration)})
        row = {"prompt": user(question), "chosen": assistant(short), "rejected": assistant(long)}
        preferences.append(row)
    return {
        "demonstrations.jsonl": demonstrations,
        "preferences.jsonl": preferences,
        "prompts.jsonl": [{"prompt": user(question)} for question, _ in learned],
        "held_out.jsonl": [{"prompt": user(question)} for question, _ in held_out],
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
