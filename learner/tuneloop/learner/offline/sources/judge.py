"""A judge in place of people (RLAIF): preferences that are asked for once and then kept."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tuneloop.errors import Unavailable
from tuneloop.reward.scorers.background import result_of
from tuneloop.reward.scorers.judge import CONSTITUTION, Judge, JudgePreference, JudgeSettings
from tuneloop.reward.scorers.judge_client import EndpointSettings
from tuneloop.text.lines import split_lines

Question = tuple[str, str, str]
"""A prompt and two answers, a and b."""
AT_ONCE = 64
"""Questions between two writes to the disk."""


class Verdicts:
    """What a judge said of pairs of answers."""

    def __init__(self, judge: Judge, *, identity: str = "", path: Path | None = None) -> None:
        """Keep verdicts in `path`, and know those of the judge `identity` that stand there."""
        self._judge = judge
        self._identity = identity
        self._path = path
        self._known: dict[str, JudgePreference] = {}
        if path is not None and path.exists():
            for line in split_lines(path.read_text(encoding="utf-8")):
                try:
                    row = json.loads(line)
                    question = row.pop("question")
                    self._known[question] = JudgePreference(**row)
                except (ValueError, KeyError, TypeError):
                    continue  # a line that a crash cut short

    def probe(self) -> None:
        """Ask the judge anything: raises `Unavailable` or `SettingsError` if that cannot work."""
        result_of(self._judge.rate("What is one plus one?", "Two."))

    def ask(self, questions: Sequence[Question]) -> list[JudgePreference]:
        """Return the judge's preference of each, in order.

        Raises `Unavailable` where the judge gave no usable verdict on any of them, and says why.
        """
        keys = [key_of(self._identity, question) for question in questions]
        missing = {k: q for k, q in zip(keys, questions, strict=True) if k not in self._known}
        asked = list(missing.items())
        for start in range(0, len(asked), AT_ONCE):
            chunk = asked[start : start + AT_ONCE]
            found = result_of(self._judge.compare_all([question for _, question in chunk]))
            self._keep([key for key, _ in chunk], found)
        preferences = [self._known[key] for key in keys]
        different = [p for p, (_, a, b) in zip(preferences, questions, strict=True) if a != b]
        if different and not any(p.votes for p in different):
            self.probe()  # if it is away this says so
            raise Unavailable(
                "the judge answers, but gave no usable verdict on any pair: its replies must end "
                "with [[1]], [[2]] or [[tie]]",
                param="judge",
            )
        return preferences

    def _keep(self, keys: Sequence[str], found: Sequence[JudgePreference]) -> None:
        self._known.update(zip(keys, found, strict=True))
        if self._path is None or not any(preference.votes for preference in found):
            return  # a judge that is away is asked again
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            for key, preference in zip(keys, found, strict=True):
                file.write(json.dumps({"question": key, **asdict(preference)}) + "\n")


def key_of(identity: str, question: Question) -> str:
    """Return what a question to a judge is known by."""
    return hashlib.sha256(json.dumps([identity, *question]).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeOptions:
    """A model behind an OpenAI-compatible endpoint."""

    url: str
    model: str
    constitution: Path | None = None
    """None is the one that comes with tuneloop."""
    api_key: str = ""
    votes: int = 3

    def make(self) -> Judge:
        """Return the judge; raises `SettingsError`."""
        endpoint = EndpointSettings(url=self.url, model=self.model, api_key=self.api_key)
        constitution = self.constitution or CONSTITUTION
        return Judge(JudgeSettings(endpoint=endpoint, constitution=constitution, votes=self.votes))

    @property
    def identity(self) -> str:
        """What decides its verdicts, for a run's record; without the key."""
        text = (self.constitution or CONSTITUTION).expanduser().read_bytes()
        digest = hashlib.sha256(text).hexdigest()
        return f"{self.model} at {self.url}, {self.votes} votes, constitution {digest[:16]}"
