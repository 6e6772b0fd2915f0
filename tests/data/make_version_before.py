"""Make `version-before.tar.gz`: what the checked-out version leaves on disk. See README.md.

Only the command line, HTTP and a process's entry point are used, so that any version can run it:

    cd FOLDER && python make_version_before.py

FOLDER must be new or empty, and ends up in the ledger as the place of the weights.
"""

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

TUNELOOP = str(Path(sys.executable).with_name("tuneloop"))
LEARNER = {
    "RELEASE": "off",
    "BATCH_SIZE": "8",
    "BATCH_WAIT_SECONDS": "1",
    "PUBLISH_EVERY_STEPS": "4",
    "PUBLISH_EVERY_SECONDS": "3",
    "CHECKPOINT_EVERY_STEPS": "4",
    "LEARNING_RATE": "1e-3",
    "LORA_RANK": "2",
    "LORA_ALPHA": "4",
    "THREADS": "1",
    "DEVICE": "cpu",
    # Names that this version has for what learns from scored rollouts.
    "PPO": "on",
    "PPO_BATCH_SIZE": "2",
    "POLICY_GRADIENT": "ppo",
}
TRAIN = {
    "kto": ["batch_size=2", "epochs=4", "learning_rate=1e-3"],
    "ppo": ["batch_size=4", "epochs=4", "samples_per_prompt=2", "max_completion_length=6",
            "ppo_epochs=2", "normalize_rewards=true", "kl_target=0.1"],
}  # fmt: skip
COMMON = ["save_steps=2", "save_total_limit=1", "logging_steps=1", "threads=1", "device=cpu",
          "lora_rank=2"]  # fmt: skip
REWARD = '''"""A reward that the fixture's runs were trained with."""


def shorter(prompts, completions, **columns):
    return [-len(completion) / 10 for completion in completions]
'''
KEPT = ("models", "data", "backup", "export", "next-step", "runs", "finished", "expected.json")
LEFT_OUT = ("logs", "weights-cache", "nats.conf", "up.log", "lock", "tensorboard", "curves.png")


def main() -> None:
    root = Path.cwd()
    assert not any(root.iterdir()), "start in an empty folder"
    make_models(root / "models")
    (root / "runs").mkdir()
    (root / "runs/before_reward.py").write_text(REWARD)
    environment = {f"TUNELOOP_LEARNER_{name}": value for name, value in LEARNER.items()}
    make_data(root, environment)
    environment["TUNELOOP_LEARNER_POLICY_GRADIENT"] = "grpo"
    make_more_data(root, environment)
    tuneloop("backup", "backup", "--data-dir", "data")
    expected = {"environment": environment, "ledger": ledger_facts(root / "data")}
    make_exports(root, expected["ledger"]["stable"])
    make_next_step(root, environment)
    expected["runs"] = make_runs(root)
    (root / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")
    prune(root / "data/learner/checkpoints")
    pack(root)


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def make_tokenizer(folder: Path) -> int:
    """A token for each byte and a few more; how many there are."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    special = ["<|start|>", "<|end|>", "<|pad|>"]
    bpe.train_from_iterator(["a"], vocab_size=256 + len(special), special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token="<|start|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        model_max_length=256,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def make_models(folder: Path) -> None:
    """A policy and a reward model's backbone, as small as they work."""
    import torch
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    size = make_tokenizer(folder / "policy")
    make_tokenizer(folder / "reward")
    torch.manual_seed(0)
    common = {"vocab_size": size, "num_hidden_layers": 1, "num_attention_heads": 2}
    policy = LlamaConfig(
        **common,
        hidden_size=8,
        intermediate_size=8,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        tie_word_embeddings=True,
        dtype="float32",
    )
    LlamaForCausalLM(policy).save_pretrained(folder / "policy")
    reward = BertConfig(
        **common,
        hidden_size=8,
        intermediate_size=8,
        max_position_embeddings=128,
        pad_token_id=2,
    )
    BertModel(reward).save_pretrained(folder / "reward")


class Service:
    """`tuneloop up`, and a user of it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.url}{path}", timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def chat(self, content: str, n: int = 1) -> list[str]:
        """The completion's ids."""
        body = {
            "model": "tuneloop",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 6,
            "temperature": 1.0,
            "n": n,
            "user": "ann",
        }
        answer = httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        first = answer.json()["id"]
        return [first, *(f"{first}.{index}" for index in range(1, n))]

    def say(self, kind: str, **body: Any) -> str:
        answer = httpx.post(f"{self.url}/v1/feedback", json={"kind": kind, **body}, timeout=30)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def samples(self) -> dict[str, Any]:
        return {s["objective"]: s for s in self.get("/v1/learner")["samples"]}


@contextmanager
def up(root: Path, environment: dict[str, str]) -> Iterator[Service]:
    """The service on `data`, stopped as Ctrl-C does."""
    port = free_port()
    command = [TUNELOOP, "up", "--data-dir", "data", "--port", str(port)]
    command += ["--model", "models/policy", "--reward-model", "models/reward"]
    command += ["--engine", "transformers"]
    own = with_reward("runs") | {"TUNELOOP_REWARD_FUNCTIONS": '["before_reward:shorter"]'}
    with (root / "up.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=own | environment)
    service = Service(f"http://127.0.0.1:{port}")
    try:
        wait(lambda: httpx.get(f"{service.url}/readyz", timeout=5).status_code == 200)
        yield service
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def make_data(root: Path, environment: dict[str, str]) -> None:
    """Every kind of feedback, a version that learned from it and from scored rollouts with PPO."""
    with up(root, environment) as service:
        wait(lambda: service.get("/v1/learner")["state"] == "waiting")
        for number in range(2):
            one, two, three = service.chat(f"story {number}", n=3)
            service.say("thumb", completion_id=one, value="up")
            service.say("thumb", completion_id=two, value="down", metadata={"page": "7"})
            service.say("rating", completion_id=three, value=4.0, user="ben")
            service.say("comparison", chosen=one, rejected=[two], user="ben")
            service.say("ranking", ranking=[three, one, two], user="eve")
            service.say("demonstration", completion_id=two, text="the lazy dog")
            service.say("comment", completion_id=one, text="thanks")
        wait(lambda: used(root, "ppo") >= 2 and used(root, "kto") == 4 and used(root, "sft") == 2)
        wait(lambda: service.get("/v1/policies")["policy_version"] >= 1)
        wait(lambda: unpublished(root) == 0)


def make_more_data(root: Path, environment: dict[str, str]) -> None:
    """Steps of GRPO, then feedback that waits because learning is paused."""
    with up(root, environment) as service:
        wait(lambda: service.get("/v1/learner")["state"] == "waiting")
        for number in range(2):
            for completion_id in service.chat(f"river {number}", n=2):
                service.say("thumb", completion_id=completion_id, value="up")
        wait(lambda: used(root, "grpo") >= 4 and used(root, "kto") == 8)
        wait(lambda: unpublished(root) == 0 and unreleased(root) == 0)
        tuneloop("policies", "pause", "--url", service.url)
        before = rows(root, "SELECT COUNT(*) FROM feedback")[0][0]
        one, two = service.chat("mountain", n=2)
        service.say("thumb", completion_id=one, value="up", id="pending-up")
        service.say("thumb", completion_id=two, value="down", id="pending-down")
        service.say("comparison", chosen=one, rejected=[two], user="ben", id="pending-pair")
        service.say("demonstration", completion_id=two, text="the sea", id="pending-edit")
        service.say("rating", completion_id=one, value=2.0, user="ben", id="pending-rating")
        service.say("thumb", completion_id=service.chat("sea")[0], value="up", id="taken-back")
        wait(lambda: rows(root, "SELECT COUNT(*) FROM feedback")[0][0] == before + 6)
        tuneloop("feedback", "retract", "taken-back", "--url", service.url)
        taken_back = "SELECT COUNT(*) FROM feedback WHERE status = 'retracted'"
        wait(lambda: rows(root, taken_back)[0][0] == 1)
        unscored = "SELECT COUNT(*) FROM rollouts LEFT JOIN scores USING (completion_id)"
        wait(lambda: rows(root, f"{unscored} WHERE scores.completion_id IS NULL")[0][0] == 0)
        wait(lambda: unpublished(root) == 0 and unreleased(root) == 0)


def ledger_facts(data: Path) -> dict[str, Any]:
    """What a later version must find."""
    root = data.parent
    newest = rows(root, "SELECT model, MAX(version) FROM versions GROUP BY model")
    stable = "SELECT MAX(version) FROM versions WHERE model = 'policy' AND state = 'stable'"
    return {
        "feedback": dict(rows(root, "SELECT kind, COUNT(*) FROM feedback GROUP BY kind")),
        "rollouts": rows(root, "SELECT COUNT(*) FROM rollouts")[0][0],
        "steps": dict(rows(root, "SELECT model, MAX(step) FROM steps GROUP BY model")),
        "uses": dict(rows(root, "SELECT objective, COUNT(*) FROM uses GROUP BY objective")),
        "versions": dict(newest),
        "stable": rows(root, stable)[0][0],
        "completion_id": rows(root, "SELECT MIN(completion_id) FROM rollouts")[0][0],
    }


def make_exports(root: Path, version: int) -> None:
    for kind in ("pairs", "thumbs", "demonstrations", "rollouts"):
        file = f"export/{kind}.jsonl"
        (root / "export").mkdir(exist_ok=True)
        tuneloop("export", "--kind", kind, "--data-dir", "data", "--output", file)
    source = ("--data-dir", "data", "--base", "models/policy")
    tuneloop("export", "--weights", str(version), *source, "--output", "export/model")


def make_next_step(root: Path, environment: dict[str, str]) -> None:
    """The adapter after the step that comes next, taken on a copy by the learner alone."""
    shutil.copytree(root / "data", root / "copy")
    nats_port, port = free_port(), free_port()
    server = [str(Path(sys.executable).with_name("nats-server")), "-js", "-sd"]
    server += [str(root / "copy/nats/jetstream"), "-a", "127.0.0.1", "-p", str(nats_port)]
    settings = {
        "PORT": port,
        "METRICS_PORT": free_port(),
        "MODEL": root / "models/policy",
        "REWARD_MODEL": root / "models/reward",
        "NATS_URL": f"nats://127.0.0.1:{nats_port}",
        "WEIGHTS_URI": root / "copy/weights",
        "SIGNING_KEY_FILE": root / "copy/keys/manifest_private.pem",
        "VERIFY_KEY_FILE": root / "copy/keys/manifest_public.pem",
        "DATA_DIR": root / "copy/learner",
    }
    own = {f"TUNELOOP_LEARNER_{name}": str(value) for name, value in settings.items()}
    own |= environment | {"TUNELOOP_LEARNER_PUBLISH_EVERY_STEPS": "1"}
    known = rows(root, "SELECT MAX(version) FROM versions WHERE model = 'policy'", "copy")[0][0]
    with sqlite3.connect(root / "copy/learner/ledger.db") as ledger:
        ledger.execute("UPDATE facts SET value = 'no' WHERE name = 'paused'")
    nats = subprocess.Popen(server, stderr=subprocess.DEVNULL)
    program = "from tuneloop.learner.main import main; main()"
    learner = subprocess.Popen([sys.executable, "-c", program], env=os.environ | own)
    found = root / f"copy/weights/tuneloop/{known + 1:08d}"
    try:
        wait(found.is_dir)
        wait(lambda: unpublished(root, "copy") == 0)
    finally:
        for process in (learner, nats):
            process.terminate()
            process.wait(timeout=60)
    shutil.copytree(found, root / "next-step")


def make_runs(root: Path) -> dict[str, Any]:
    """For each algorithm a run that was killed, and the weights of one that was not."""
    (root / "finished").mkdir()
    words = "the quick brown fox jumps over a lazy dog near the river".split()  # noqa: SIM905
    told: dict[str, Any] = {}
    for algorithm, settings in TRAIN.items():
        lines = []
        for number in range(12):
            row: dict[str, Any] = {"prompt": " ".join(words[number % 5 : number % 5 + 3])}
            if algorithm == "kto":
                row |= {"completion": words[number], "label": number % 3 == 0}
            lines.append(json.dumps(row) + "\n")
        (root / f"runs/{algorithm}.jsonl").write_text("".join(lines))
        arguments = ["train", algorithm, "--model", "../models/policy"]
        arguments += ["--data", f"{algorithm}.jsonl"]
        if algorithm != "kto":
            arguments += ["--reward", "before_reward:shorter"]
        for setting in (*COMMON, *settings):
            arguments += ["--set", setting]
        tuneloop(*arguments, "--output", f"../finished/{algorithm}", cwd=root / "runs")
        for path in (root / "finished" / algorithm).iterdir():
            if path.name not in ("adapter", "run.json", "settings.json"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        run_until_killed([*arguments, "--output", algorithm], 5, root / "runs")
        saved = sorted((root / "runs" / algorithm / "checkpoints").glob("step-*"))
        told[algorithm] = {"arguments": arguments, "saved": int(saved[-1].name[5:])}
    return told


def run_until_killed(arguments: list[str], step: int, folder: Path) -> None:
    process = subprocess.Popen(
        [TUNELOOP, *arguments], stderr=subprocess.PIPE, text=True, env=with_reward("."), cwd=folder
    )
    assert process.stderr is not None
    for line in process.stderr:
        found = re.match(r"step (\d+)", line)
        if found and int(found[1]) >= step:
            break
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def prune(checkpoints: Path) -> None:
    """Keep the beginning and the newest of each model, as a learner may."""
    for folder in checkpoints.iterdir():
        for path in sorted(folder.iterdir())[1:-1]:
            shutil.rmtree(path)


def pack(root: Path) -> None:
    """Write the archive; equal files are stored once."""
    known: dict[bytes, Path] = {}
    for path in sorted(p for name in KEPT for p in [root / name, *(root / name).rglob("*")]):
        if not path.is_file() or path.suffix not in (".json", ".safetensors"):
            continue
        first = known.setdefault(path.read_bytes(), path)
        if first is not path:
            path.unlink()
            path.hardlink_to(first)

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if any(part in LEFT_OUT for part in Path(entry.name).parts):
            return None
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(root / "version-before.tar.gz", "w:gz", compresslevel=9) as archive:
        for name in KEPT:
            archive.add(root / name, name, filter=plain)


def tuneloop(*arguments: str, cwd: Path | None = None) -> None:
    subprocess.run([TUNELOOP, *arguments], check=True, env=with_reward("."), cwd=cwd)


def with_reward(folder: str) -> dict[str, str]:
    """The environment, with the reward function's folder on Python's path after what there is."""
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), folder])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def rows(root: Path, query: str, data: str = "data") -> list[Any]:
    ledger = sqlite3.connect(f"file:{root / data / 'learner/ledger.db'}?mode=ro", uri=True)
    try:
        return ledger.execute(query).fetchall()
    finally:
        ledger.close()


def used(root: Path, objective: str) -> int:
    return int(rows(root, f"SELECT COUNT(*) FROM uses WHERE objective = '{objective}'")[0][0])


def unpublished(root: Path, data: str = "data") -> int:
    query = "SELECT COUNT(*) FROM uses WHERE model = 'policy' AND policy_version IS NULL"
    return int(rows(root, query, data)[0][0])


def unreleased(root: Path) -> int:
    return int(rows(root, "SELECT COUNT(*) FROM versions WHERE stage != 'released'")[0][0])


def wait(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (httpx.HTTPError, AssertionError, sqlite3.OperationalError):
            pass
        time.sleep(0.1)
    raise AssertionError("not in time")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
