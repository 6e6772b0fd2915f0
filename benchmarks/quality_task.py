"""The task of `learner_quality`, and both sides that learn it from the same samples.

A random 2-layer llama of hidden size 64 answers four random words with nine. An answer is liked by
the share of its words of one parity: even, or, where the task is conditional, that of the prompt's
first word. DPO and KTO learn once from pairs or thumbs on answers of the untrained model, GRPO and
PPO from scored answers of the policy as it is. What is reported is the hidden preference itself, on
prompts and samples that nothing was trained on.
"""

import contextlib
import importlib
import io
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.hidden_preference import VOCABULARY, make_model, make_trainer
from tuneloop.learner.samples import (
    PairSample,
    PolicySample,
    ScoredGroup,
    ScoredSample,
    ThumbSample,
    TokenSequence,
)

WORDS = 9
"""In an answer: an odd number, so that each is either liked or not."""
PROMPT_WORDS = 4
END = VOCABULARY - 1
UNKNOWN = VOCABULARY - 2
GROUP = 8
BATCH = {"dpo": 16, "kto": 32, "grpo": 64, "rloo": 64, "ppo": 64}
"""Samples of a step: pairs, thumbs, answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run."""

    task: str
    """unconditional or conditional."""
    method: str
    """dpo, kto, grpo, rloo or ppo."""
    side: str
    """tuneloop, trl_tuned or trl_default."""
    seed: int
    rate: float
    schedule: str = "constant"
    """Of the rate: constant, or linear down to 0, which is TRL's default."""
    steps: int
    points: int = 8
    """Of the curve."""

    @property
    def conditional(self) -> bool:
        """Whether the prompt decides what is liked."""
        return self.task == "conditional"


Answers = list[TokenSequence]
Curve = list[tuple[int, float]]
"""Steps, and the score of the policy after them."""


def score_of(prompt: Sequence[int], completion: Sequence[int], *, conditional: bool) -> float:
    """Share of the words that are liked, 0 to 1."""
    parity = prompt[0] % 2 if conditional else 0
    words = [token for token in completion if token != END]
    return sum(word % 2 == parity for word in words) / max(1, len(words))


def random_prompts(count: int, choose: random.Random) -> list[tuple[int, ...]]:
    """Prompts of random words."""
    return [tuple(choose.randrange(UNKNOWN) for _ in range(PROMPT_WORDS)) for _ in range(count)]


@torch.no_grad()
def answer(module: Any, prompts: Sequence[Sequence[int]], generator: torch.Generator) -> Answers:
    """One answer to each prompt at temperature 1; it never ends early."""
    rows = torch.tensor([list(prompt) for prompt in prompts])
    known: list[torch.Tensor] = []
    read, cache = rows, None
    for _ in range(WORDS):
        output = module(input_ids=read, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logprobs = output.logits[:, -1].float().log_softmax(-1)
        mass = logprobs.exp()
        mass[:, END] = 0.0
        chosen = torch.multinomial(mass, 1, generator=generator)
        known.append(logprobs.gather(-1, chosen))
        rows, read = torch.cat([rows, chosen], dim=1), chosen
    return [
        TokenSequence(
            prompt_token_ids=tuple(row[:PROMPT_WORDS]),
            completion_token_ids=tuple(row[PROMPT_WORDS:]),
            generation_logprobs=tuple(min(0.0, value) for value in values),
            temperature=1.0,
        )
        for row, values in zip(rows.tolist(), torch.cat(known, dim=1).tolist(), strict=True)
    ]


def fresh_prompts() -> list[tuple[int, ...]]:
    """Prompts to measure by, the same for all."""
    return random_prompts(256, random.Random("fresh prompts"))


def preferences(module: Any, *, conditional: bool) -> list[float]:
    """Hidden preference of an answer to each of the fresh prompts."""
    answers = answer(module, fresh_prompts(), torch.Generator().manual_seed(2**31))
    return [
        score_of(s.prompt_token_ids, s.completion_token_ids, conditional=conditional)
        for s in answers
    ]


def evaluate(module: Any, *, conditional: bool) -> float:
    """Mean hidden preference of answers to fresh prompts."""
    scores = preferences(module, conditional=conditional)
    return sum(scores) / len(scores)


def ended(sequence: TokenSequence) -> TokenSequence:
    """An answer as a data set holds it: with the end token, nobody knows its log-probs."""
    return TokenSequence(
        prompt_token_ids=sequence.prompt_token_ids,
        completion_token_ids=(*sequence.completion_token_ids, END),
        generation_logprobs=(),
        temperature=1.0,
    )


def judged(job: Job, module: Any) -> list[Any]:
    """The data set of DPO or KTO: of each step's samples, once."""
    choose, generator = random.Random(job.seed), torch.Generator().manual_seed(job.seed)
    count = BATCH[job.method] * job.steps

    def score(sequence: TokenSequence) -> float:
        prompt, completion = sequence.prompt_token_ids, sequence.completion_token_ids
        return score_of(prompt, completion, conditional=job.conditional)

    samples: list[Any] = []
    while len(samples) < count:
        prompts = random_prompts(256, choose)
        if job.method == "kto":
            samples += [
                ThumbSample(sample_id="", sequence=ended(s), desirable=score(s) > 0.5)
                for s in answer(module, prompts, generator)
            ]
            continue
        both = zip(
            answer(module, prompts, generator), answer(module, prompts, generator), strict=True
        )
        for one, other in both:
            worse, better = sorted((one, other), key=score)
            if score(worse) < score(better):
                samples.append(
                    PairSample(sample_id="", chosen=ended(better), rejected=ended(worse))
                )
    return samples[:count]


def scored(answers: Answers, *, conditional: bool) -> list[ScoredSample]:
    """Answers with the hidden preference as their reward."""
    return [
        ScoredSample(
            sample_id=str(number),
            sequence=s,
            reward=score_of(s.prompt_token_ids, s.completion_token_ids, conditional=conditional),
            policy_version=0,
            stopped=True,
        )
        for number, s in enumerate(answers)
    ]


def groups_of(samples: Sequence[ScoredSample]) -> list[ScoredGroup]:
    """Answers of one prompt together; they follow each other."""
    return [
        ScoredGroup(sample_id=str(start), samples=tuple(samples[start : start + GROUP]))
        for start in range(0, len(samples), GROUP)
    ]


def run_tuneloop(job: Job, folder: Path) -> Curve:
    """Learn with tuneloop's trainer: its defaults but for the rate, and no KL where it scores."""
    trainer = make_trainer(
        folder,
        job.seed,
        learning_rate=job.rate,
        lr_scheduler_type=job.schedule,
        max_steps=job.steps,
        beta_grpo=0.0,
        kl_coef=0.0,
        advantage_estimator="rloo" if job.method == "rloo" else "grpo",
    )
    choose, generator = random.Random(job.seed), torch.Generator().manual_seed(job.seed)
    offline = job.method in ("dpo", "kto")
    data = judged(job, trainer.model.module) if offline else []
    size = BATCH[job.method]
    curve: Curve = [(0, evaluate(trainer.model.module, conditional=job.conditional))]
    for step in range(job.steps):
        samples: Sequence[PolicySample] = data[step * size : (step + 1) * size]
        if not offline:
            prompts = [p for p in random_prompts(size // GROUP, choose) for _ in range(GROUP)]
            answers = answer(trainer.model.module, prompts, generator)
            rewarded = scored(answers, conditional=job.conditional)
            samples = rewarded if job.method == "ppo" else groups_of(rewarded)
        trainer.step({"grpo" if job.method == "rloo" else job.method: samples})
        if is_point(step + 1, job.steps, job.points):
            score = evaluate(trainer.model.module, conditional=job.conditional)
            curve.append((step + 1, score))
    return curve


def is_point(step: int, steps: int, points: int = 8) -> bool:
    """Whether the policy is scored after a step."""
    return step == steps or step % max(1, steps // points) == 0


def make_tokenizer(unknown: str | None = "<unk>") -> Any:
    """Of words w0, w1, … and an end token; without `unknown`, `<unk>` is a word like any other."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{word}": word for word in range(UNKNOWN)}
    words = vocabulary | {"<unk>": UNKNOWN, "<end>": END}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unknown, eos_token="<end>", pad_token="<end>"
    )


def words_of(tokens: Sequence[int]) -> str:
    """Tokens as text, without the end token."""
    return " ".join(
        "<unk>" if token == UNKNOWN else f"w{token}" for token in tokens if token != END
    )


def run_trl(job: Job, folder: Path) -> Curve:
    """Learn with TRL's own trainer; of `ppo` it has none."""
    from transformers import AutoModelForCausalLM, TrainerCallback

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    curve: Curve = [(0, evaluate(model, conditional=job.conditional))]

    class Points(TrainerCallback):  # type: ignore[misc]
        """Scores the policy as it learns."""

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            """Note a point of the curve."""
            if is_point(state.global_step, job.steps, job.points):
                training = model.training
                model.eval()
                curve.append((state.global_step, evaluate(model, conditional=job.conditional)))
                model.train(training)

    make_trainer_of_trl(job, model, folder.parent / "trl", [Points()]).train()
    return curve


def make_trainer_of_trl(job: Job, model: Any, output: Path, callbacks: list[Any]) -> Any:
    """TRL's trainer of a method.

    `trl_default` differs from its defaults in the rate alone (RLOO then has a KL of 0.05);
    `trl_tuned` has the schedule of the job, no checkpointing, no bfloat16, and no KL in
    GRPO and RLOO.
    """
    trl: Any = importlib.import_module("trl")
    name = job.method.upper()
    make_config, make = getattr(trl, f"{name}Config"), getattr(trl, f"{name}Trainer")
    options: dict[str, Any] = {
        "output_dir": str(output),
        "learning_rate": job.rate,
        "max_steps": job.steps,
        "per_device_train_batch_size": BATCH[job.method],
        "seed": job.seed,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    if job.side == "trl_tuned":
        options |= {
            "lr_scheduler_type": job.schedule,
            "gradient_checkpointing": False,
            "bf16": False,
        }
    common = {"processing_class": make_tokenizer(), "callbacks": callbacks}
    if job.method in ("dpo", "kto"):
        data = data_of_trl(judged(job, model))
        return make(model=model, args=make_config(**options), train_dataset=data, **common)
    options |= {
        "num_generations": GROUP,
        "max_completion_length": WORDS,
        "generation_kwargs": {"min_new_tokens": WORDS},
    }
    if job.side == "trl_tuned":
        options["beta"] = 0.0
    return make(
        model=model,
        args=make_config(**options),
        reward_funcs=[hidden_reward(job)],
        train_dataset=prompts_of_trl(job),
        **common,
    )


def hidden_reward(job: Job) -> Callable[..., list[float]]:
    """The hidden preference as TRL asks for it."""

    def reward(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any
    ) -> list[float]:
        firsts = [int(prompt.split()[0].removeprefix("w")) for prompt in prompts]
        return [
            score_of([first], completion, conditional=job.conditional)
            for first, completion in zip(firsts, completion_ids, strict=True)
        ]

    return reward


def prompts_of_trl(job: Job) -> Any:
    """As many prompts as a run takes."""
    from datasets import Dataset

    count = BATCH[job.method] // GROUP * job.steps
    prompts = random_prompts(count, random.Random(job.seed))
    return Dataset.from_list([{"prompt": words_of(prompt)} for prompt in prompts])


def data_of_trl(samples: Sequence[Any]) -> Any:
    """Pairs or thumbs as TRL's data set; it adds the end token itself."""
    from datasets import Dataset

    def text(tokens: Sequence[int]) -> str:
        return " " + words_of(tokens)

    rows: list[dict[str, Any]] = []
    for sample in samples:
        if isinstance(sample, PairSample):
            chosen, rejected = sample.chosen, sample.rejected
            texts = {
                "chosen": text(chosen.completion_token_ids) + " ",
                "rejected": text(rejected.completion_token_ids) + " ",
            }
            rows.append({"prompt": words_of(chosen.prompt_token_ids), **texts})
        else:
            sequence = sample.sequence
            rows.append(
                {
                    "prompt": words_of(sequence.prompt_token_ids),
                    "completion": text(sequence.completion_token_ids) + " ",
                    "label": sample.desirable,
                }
            )
    return Dataset.from_list(rows)


def run(job: Job) -> Curve:
    """One run, in a process of its own or not."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_model(Path(scratch) / "model", job.seed)
        if job.side == "tuneloop":
            return run_tuneloop(job, folder)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return run_trl(job, folder)
