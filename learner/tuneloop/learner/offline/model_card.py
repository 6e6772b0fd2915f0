"""The model card of an exported version: what it was made from, how, and how good it was found.

A card says what is recorded and nothing else: what is not known is called so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from typing import Any, Literal

CARD_NAME = "README.md"
WeightsForm = Literal["merged", "adapter", "gguf"]
"""What a version is exported as."""
LIBRARIES: Mapping[WeightsForm, str] = {
    "merged": "transformers",
    "adapter": "peft",
    "gguf": "gguf",
}
UNKNOWN = "unknown"
KINDS_OF_SAMPLES = {
    "sft": "demonstrations",
    "kto": "thumbs",
    "dpo": "pairs of a chosen and a rejected answer",
    "sdft": "answers commented on in words",
    "ppo": "scored answers",
    "grpo": "scored answers, in groups by prompt",
    "reward_model": "labels of the reward model",
    "signals": "signals of users",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What is known of a version; fields are empty or None where nothing is recorded."""

    title: str
    base_model: str
    """As the user named it."""
    base_is_public: bool = False
    """Whether that is the id of a model on the hub, and not a folder of this machine."""
    license: Mapping[str, str] = field(default_factory=dict)
    """`license`, and where the base's card has them `license_name` and `license_link`."""
    origin: str = ""
    """What it is a version of, as a clause."""
    warnings: Sequence[str] = ()
    """Why not to use it."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Version, parent, date, steps: a row each."""
    algorithms: Sequence[str] = ()
    samples: Mapping[str, int] = field(default_factory=dict)
    """Counts by objective, over the version and all it grew from."""
    new_samples: Mapping[str, int] = field(default_factory=dict)
    """The same since its parent."""
    feedback: Mapping[str, int] = field(default_factory=dict)
    """Counts of the feedback behind the samples, by kind."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Other facts of the data: a row each."""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Sequence[tuple[str, str]] = ()
    """Figures and what they are, in order."""

    @property
    def is_reward_model(self) -> bool:
        """Whether the version scores answers, and does not write them."""
        return bool({"reward-model", "reward_model", "signals"} & {*self.algorithms})

    def text(self, form: WeightsForm, file: str = "") -> str:
        """Return the card of the version exported as `form`; `file` is the GGUF's name."""
        parts = [
            f"---\n{self._metadata(form)}\n---",
            f"# {self.title}",
            self._summary(form),
            *(f"> **Warning:** {warning}" for warning in self.warnings),
            "## How to use it",
            self._usage(form, file),
            "## The version",
            table(self.facts.items()),
            "## Data",
            self._data(),
            "## Training",
            self._training(),
            "## Evaluation",
            table(self.evaluation) or "No evaluation is recorded.",
            "## Licence",
            self._license(),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _metadata(self, form: WeightsForm) -> str:
        from huggingface_hub import ModelCardData

        found = ModelCardData(
            # The hub takes ids alone here.
            base_model=self.base_model.partition("@")[0] if self.base_is_public else None,
            base_model_relation="adapter" if form == "adapter" else "finetune",
            library_name=LIBRARIES[form],
            license=self.license.get("license", UNKNOWN),
            license_name=self.license.get("license_name"),
            license_link=self.license.get("license_link"),
            pipeline_tag="text-classification" if self.is_reward_model else "text-generation",
            tags=["tuneloop", *(["lora"] if form == "adapter" else []), *self.algorithms],
        )
        return str(found.to_yaml()).strip()

    def _summary(self, form: WeightsForm) -> str:
        what = {
            "merged": "The full weights",
            "adapter": "A LoRA adapter",
            "gguf": "The full weights, as GGUF,",
        }[form]
        of = f"`{self.base_model}`"
        if self.algorithms:
            of = f"a model that grew from {of}, trained with {spoken(self.algorithms)}"
        origin = f" {self.origin}" if self.origin else ""
        return f"{what} of {of}{origin}. Written by tuneloop {version('tuneloop')}."

    def _usage(self, form: WeightsForm, file: str) -> str:
        if form == "gguf":
            return (
                f"```sh\nllama-server --jinja -m {file}\n"
                f"echo 'FROM ./{file}' > Modelfile && ollama create my-model -f Modelfile\n```"
            )
        name, revision = self.base_model, ""
        if self.base_is_public:
            name, _, revision = name.partition("@")
        base = f"{name!r}, revision={revision!r}" if revision else repr(name)
        kind = "SequenceClassification" if self.is_reward_model else "CausalLM"
        model = f"AutoModelFor{kind}"
        lines = [f"from transformers import {model}, AutoTokenizer", ""]
        if form == "adapter":
            lines.insert(0, "from peft import PeftModel")
            lines += [
                f"base = {model}.from_pretrained({base})",
                "model = PeftModel.from_pretrained(base, 'this folder')",
                f"tokenizer = AutoTokenizer.from_pretrained({base})",
            ]
        else:
            lines += [
                f"model = {model}.from_pretrained('this folder')",
                "tokenizer = AutoTokenizer.from_pretrained('this folder')",
            ]
        return "\n".join(["```python", *lines, "```"])

    def _data(self) -> str:
        rows = [
            (f"`{name}`: {KINDS_OF_SAMPLES.get(name, name)}", self._count(name))
            for name in sorted({*self.samples, *self.new_samples})
        ]
        rows += [(f"feedback: {kind}", f"{n:,}") for kind, n in sorted(self.feedback.items())]
        rows += list(self.data.items())
        return table(rows) or "What it learned from is not recorded."

    def _count(self, name: str) -> str:
        total, new = self.samples.get(name), self.new_samples.get(name, 0)
        if total is None:
            return f"{new:,} since its parent"
        return f"{total:,}, of which {new:,} since its parent" if self.new_samples else f"{total:,}"

    def _training(self) -> str:
        if not self.algorithms:
            return "How it was trained is not recorded."
        said = f"Algorithms: {spoken(self.algorithms)}."
        rows = [(f"`{name}`", value) for name, value in self.hyperparameters.items()]
        return "\n\n".join(part for part in (said, table(rows)) if part)

    def _license(self) -> str:
        found = self.license.get("license", UNKNOWN)
        if found == UNKNOWN:
            return f"Unknown: what came with `{self.base_model}` does not say. Ask its authors."
        name = self.license.get("license_name", found)
        link = self.license.get("license_link")
        return f"`{name}`{f' ({link})' if link else ''}, as the base model says of itself."


def spoken(names: Sequence[str]) -> str:
    """Return names as an enumeration."""
    *first, last = (f"`{name}`" for name in names)
    return f"{', '.join(first)} and {last}" if first else last


def table(rows: Any) -> str:
    """Return a table of two columns; nothing where there are no rows."""
    lines = [f"| {cell(name)} | {cell(value)} |" for name, value in rows]
    return "\n".join(["| | |", "| --- | --- |", *lines]) if lines else ""


def cell(value: Any) -> str:
    """Return a value as it may stand in a table."""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M} UTC"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).split()).replace("|", "\\|")
