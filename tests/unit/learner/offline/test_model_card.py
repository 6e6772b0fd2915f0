"""A model card says what is recorded of a version, and that the rest is unknown."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard as HubCard
from support.exported_service import examine, make_service, quarantine

from tuneloop.learner.ledger.accounting import lineage
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.offline.card_facts import license_of, make_card, of_run
from tuneloop.learner.offline.model_card import ModelCard
from tuneloop.learner.offline.versions import Versions


@pytest.fixture
def service(tiny_policy: Path, tmp_path: Path) -> Path:
    return make_service(tiny_policy, tmp_path / "service")


def rows_of(text: str) -> dict[str, str]:
    """The tables of a card, by the first column."""
    lines = [line.strip("| ").split(" | ", 1) for line in text.splitlines() if line[:2] == "| "]
    return {line[0]: line[1] for line in lines if len(line) == 2}


def test_a_version_of_a_service_is_described_from_manifest_and_ledger(
    service: Path, tiny_policy: Path
) -> None:
    examine(service, 2)
    text = make_card(Versions(data_dir=service).find("2")).text("adapter")
    found = HubCard(text).data.to_dict()
    assert found == {
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "unknown",
        "pipeline_tag": "text-generation",
        "tags": ["tuneloop", "lora", "dpo", "kto"],
    }, "a folder of this machine is no base model on the hub"
    rows = rows_of(text)
    assert rows["base model"] == f"`{tiny_policy}`"
    assert (rows["version"], rows["grew from version"]) == ("2", "1")
    assert rows["made"] == "2026-01-01 12:30 UTC"
    assert rows["optimizer steps"] == "2 in all, 1 since its parent"
    # A thumb each for versions 1 and 2, a comparison for 2.
    assert rows["`kto`: thumbs"] == "2, of which 1 since its parent"
    assert (
        rows["`dpo`: pairs of a chosen and a rejected answer"] == "1, of which 1 since its parent"
    )
    assert (rows["feedback: thumb"], rows["feedback: comparison"]) == ("2", "1")
    assert "Algorithms: `dpo` and `kto`." in text
    settings = {"`lora_rank`": "8", "`learning_rate`": "0.0003", "`beta_kto`": "0.2"}
    assert settings.items() <= rows.items()
    assert rows["`batch_size`"] == "16"
    assert "`beta_grpo`" not in rows, "nothing learned by it"
    assert rows["gate, 2026-01-01"] == "pass: within all bounds"
    assert rows["KL to the base model"] == "0.045 nats per token"
    assert rows["change of the weights"] == "1.23 % of the base weights' norm"
    assert rows["ability suite `builtin`, 40 items"] == "0.61"
    change = "-0.012 (95 % interval -0.03 to +0.006, 40 pairs)"
    assert rows["`builtin` against version 0"] == change
    assert rows["length of its answers"] == "31.5 tokens"
    assert rows["length of the thoughts before them"] == "90 tokens"
    assert rows["training, last step: `loss`"] == "0.6931"
    assert "## Licence\n\nUnknown: " in text
    assert "Warning:** this version is a candidate" in text


def test_a_version_taken_back_says_so(service: Path) -> None:
    quarantine(service, 2)
    text = make_card(Versions(data_dir=service).find("2")).text("merged")
    assert (
        "> **Warning:** this version was quarantined and does not serve: it answers | too briefly."
        in text
    )
    rows = rows_of(text)
    assert rows["state"] == "quarantined"
    assert rows["quarantine, 2026-01-01"] == "quarantined: it answers \\| too briefly"
    assert rows["gate"] == "did not examine this version"


def test_what_was_put_back_is_counted_for_the_version_that_had_used_it(service: Path) -> None:
    from tuneloop.learner.ledger.accounting import quarantine as quarantines

    quarantine(service, 2)
    database = Database.at(service / "learner" / "ledger.db")
    assert quarantines.put_back(database, 0.0, 2) is not None
    for version, expected in ((1, {"kto": 1}), (2, {"kto": 2, "dpo": 1})):
        assert lineage.count_data(database, "policy", version).samples == expected
    counts = lineage.count_data(database, "policy", 0)
    assert (counts.samples, counts.feedback) == ({}, {})


def test_without_a_ledger_the_manifest_says_what_it_knows(service: Path) -> None:
    (service / "learner" / "ledger.db").unlink()
    rows = rows_of(make_card(Versions(data_dir=service).find("2")).text("merged"))
    assert rows["`kto`: thumbs"] == "1 since its parent"
    assert rows["version"] == "2"
    assert "state" not in rows


def test_a_base_model_has_no_training_of_ours(service: Path) -> None:
    text = make_card(Versions(data_dir=service).find("0")).text("merged")
    assert rows_of(text)["base model"] in text.split("## How")[0], "as what it is"
    assert "What it learned from is not recorded." in text
    assert "How it was trained is not recorded." in text
    assert "No evaluation is recorded." in text


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {"license": "unknown"}),
        ({"README.md": "No front matter, but licensed under MIT."}, {"license": "unknown"}),
        ({"README.md": "---\nlicense: [\n---\n"}, {"license": "unknown"}),
        ({"README.md": "---\nlicense: apache-2.0\n---\n# A model"}, {"license": "apache-2.0"}),
        (
            {"README.md": "---\nlicense: other\nlicense_name: qwen\nlicense_link: LICENSE\n---\n"},
            {"license": "other", "license_name": "qwen", "license_link": "LICENSE"},
        ),
        ({"config.json": json.dumps({"license": "mit"})}, {"license": "mit"}),
    ],
)
def test_the_licence_is_what_the_base_model_says(
    files: dict[str, str], expected: dict[str, str], tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert license_of("owner/not-in-the-cache", tmp_path) == expected
    assert license_of(str(tmp_path), tmp_path / "elsewhere") == expected


def test_the_licence_of_a_model_of_the_catalog_is_the_catalogs(tmp_path: Path) -> None:
    assert license_of("smollm2-135m-instruct", tmp_path) == {"license": "apache-2.0"}


def card(**changes: Any) -> ModelCard:
    return ModelCard(**{"title": "a", "base_model": "owner/base", **changes})


def test_a_run_is_described_from_its_summary() -> None:
    change = {"pairs": 243, "difference": -0.01, "low": -0.03, "high": 0.01, "confidence": 0.95}
    run = {
        "algorithm": "grpo",
        "data": "/home/ann/secret customer/prompts.jsonl",
        "rows": 1200,
        "rewards": ["rewards:shorter=1"],
        "judge": "qwen3-32b at http://judge.internal/v1, 3 votes, constitution 0123456789abcdef",
        "step": 75,
        "settings": {"kind": "lora", "learning_rate": None, "beta_grpo": 0.0, "beta_kto": 0.1},
        "abilities": [{"figures": {"value": 0.7}, "change": {"value": change}}],
        "metrics": {"reward": {"first": -1.5, "last": 0.25}, "tokens": {"first": 1, "last": 1}},
    }
    text = of_run(card(), run).text("merged")
    rows = rows_of(text)
    assert (rows["data"], rows["rows"]) == ("`prompts.jsonl`", "1,200")
    assert (rows["rewards"], rows["judge"]) == ("rewards:shorter=1", "qwen3-32b")
    assert "/home/ann" not in text
    assert "judge.internal" not in text
    assert rows["`learning_rate`"] == "0.0002", "what stands for null with LoRA"
    assert rows["`beta_grpo`"] == "0"
    assert "`beta_kto`" not in rows
    assert rows["ability suite"] == "0.7"
    drop = "-0.01 (95 % interval -0.03 to +0.01, 243 pairs)"
    assert rows["ability suite against before the run"] == drop
    assert rows["training: `reward`"] == "-1.5 in the first tenth, 0.25 in the last"


@pytest.mark.parametrize(
    ("form", "library", "usage"),
    [
        ("adapter", "peft", "PeftModel.from_pretrained(base, 'this folder')"),
        ("merged", "transformers", "AutoModelForCausalLM.from_pretrained('this folder')"),
        ("gguf", "gguf", "llama-server --jinja -m a.gguf"),
    ],
)
def test_each_form_says_how_to_use_it(form: Any, library: str, usage: str) -> None:
    text = card(base_is_public=True, license={"license": "mit"}).text(form, "a.gguf")
    metadata = HubCard(text).data
    assert (metadata.library_name, metadata.license) == (library, "mit")
    assert metadata.base_model == "owner/base"
    assert usage in text
    pinned = card(base_model="owner/base@v2", base_is_public=True).text(form)
    assert HubCard(pinned).data.base_model == "owner/base"
    assert ("from_pretrained('owner/base', revision='v2')" in pinned) is (form == "adapter")
    assert "`mit`, as the base model says of itself." in text
