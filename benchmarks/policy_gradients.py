"""What settings of policy gradients are worth: `python -m benchmarks.policy_gradients [NAME …]`.

The random 2-layer llama of `quality_task` learns a hidden preference from scored answers:

* `stale`: GRPO on answers that an older policy sampled, `lag` steps ago;
* `solved`: GRPO with rewards of 0 or 1, past the step from which most groups are solved;
* `scale`: PPO with rewards of ten sizes, as they come and normalised.

Each line is the hidden preference of fresh answers (chance is 0.5) and their KL to the reference
policy, nats per token, at the end, and the mean preference on the way there; means over seeds.
"""

import json
import random
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.hidden_preference import make_model, make_trainer
from benchmarks.quality_task import GROUP, answer, groups_of, random_prompts, score_of, scored

RATE = 3e-3
ANSWERS = 64
"""Of a step."""
Options = Mapping[str, Any]

CASES: Mapping[str, Mapping[str, tuple[Options, Options]]] = {
    "stale": {
        f"lag {lag}: {name}": ({"lag": lag, "steps": 60}, {"beta_grpo": 0.0, **options})
        for lag in (0, 4, 12)
        for name, options in {
            "as it is": {},
            "no gate": {"sequence_gate": 1e9},
            "sequence_mask": {"importance_sampling": "sequence_mask"},
            "mask negatives at 0.5": {"off_policy_mask_threshold": 0.5},
            "mask negatives at 0.1": {"off_policy_mask_threshold": 0.1},
            "no gate, mask negatives at 0.5": {
                "sequence_gate": 1e9,
                "off_policy_mask_threshold": 0.5,
            },
        }.items()
        if lag or name == "as it is"
    },
    "solved": {
        f"{steps} steps: {'restrained' if restrain else 'skipped'}": (
            {"binary": True, "steps": steps},
            {"restrain_solved_groups": restrain},
        )
        for steps in (40, 120)
        for restrain in (False, True)
    },
    "scale": {
        f"rewards × {scale:g}: {'normalised' if normalised else 'as they come'}": (
            {"objective": "ppo", "scale": scale, "steps": 80},
            {"normalize_rewards": normalised},
        )
        for scale in (0.1, 1.0, 10.0)
        for normalised in (False, True)
    },
}


def measure(trainer: Any) -> tuple[float, float]:
    """Hidden preference of 256 fresh answers, and their KL to the reference policy per token."""
    prompts = random_prompts(256, random.Random("fresh prompts"))
    answers = answer(trainer.model.module, prompts, torch.Generator().manual_seed(2**31))
    scores = [
        score_of(s.prompt_token_ids, s.completion_token_ids, conditional=False) for s in answers
    ]
    references = trainer.reference_logprobs(answers)
    ratios = [
        p - r
        for s, reference in zip(answers, references, strict=True)
        for p, r in zip(s.generation_logprobs, reference, strict=True)
    ]
    return statistics.fmean(scores), statistics.fmean(ratios)


def run(
    folder: Path,
    seed: int,
    options: Options,
    *,
    steps: int,
    objective: str = "grpo",
    lag: int = 0,
    binary: bool = False,
    scale: float = 1.0,
) -> dict[str, float]:
    """Learn, and return what came of it."""
    trainer = make_trainer(folder, seed, learning_rate=RATE, **options)
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    waiting: deque[Any] = deque()
    way: list[float] = []
    for _ in range(steps + lag):
        prompts = [p for p in random_prompts(ANSWERS // GROUP, choose) for _ in range(GROUP)]
        samples = scored(answer(trainer.model.module, prompts, generator), conditional=False)
        way.append(statistics.fmean(s.reward for s in samples))
        rewards = [float(s.reward > 0.5) if binary else s.reward for s in samples]
        samples = [replace(s, reward=scale * r) for s, r in zip(samples, rewards, strict=True)]
        waiting.append(samples if objective == "ppo" else groups_of(samples))
        if len(waiting) > lag:
            trainer.step({objective: waiting.popleft()})
    preference, kl = measure(trainer)
    return {"preference": preference, "kl": kl, "on the way": statistics.fmean(way)}


def main(names: Sequence[str], seeds: int = 2) -> None:
    """Measure the cases of `names`, or all, and print a line for each."""
    torch.set_num_threads(1)
    for name in names or CASES:
        for case, (task, options) in CASES[name].items():
            start = time.perf_counter()
            found = []
            for seed in range(seeds):
                with tempfile.TemporaryDirectory() as folder:
                    found.append(run(make_model(Path(folder), seed), seed, options, **task))
            line = {key: round(statistics.fmean(f[key] for f in found), 3) for key in found[0]}
            seconds = round(time.perf_counter() - start)
            print(json.dumps({"case": f"{name}, {case}", **line, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
