"""The judge, from options: where it is and what it judges by."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tuneloop.reward.scorers.judge import CONSTITUTION, Judge, JudgeSettings
from tuneloop.reward.scorers.judge_client import EndpointSettings


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
        """The judge; raises `SettingsError`."""
        endpoint = EndpointSettings(url=self.url, model=self.model, api_key=self.api_key)
        constitution = self.constitution or CONSTITUTION
        return Judge(JudgeSettings(endpoint=endpoint, constitution=constitution, votes=self.votes))

    @property
    def identity(self) -> str:
        """What decides its verdicts, for a run's record; without the key."""
        text = (self.constitution or CONSTITUTION).expanduser().read_bytes()
        digest = hashlib.sha256(text).hexdigest()
        return f"{self.model} at {self.url}, {self.votes} votes, constitution {digest[:16]}"
