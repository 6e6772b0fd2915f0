"""Models that think, on both engines: what is sampled, streamed and published."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from support.engine_helpers import Versions, make_engine
from support.thinking_models import (
    ANSWER,
    NEXT_ANSWER,
    NEXT_QUESTION,
    NEXT_THOUGHT,
    QUESTION,
    SHAPES,
    THOUGHT,
    make_thinker,
)

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.bus.memory import MemoryBus
from tuneloop.errors import SettingsError
from tuneloop.generation.completions import Completions
from tuneloop.generation.engine import Engine, EngineLimits, EngineOutput, EngineRequest
from tuneloop.generation.formats.tool_calls import ToolCallDelta, merge_calls
from tuneloop.generation.partial_completion import Delta, Final
from tuneloop.generation.prompts import Tokenization
from tuneloop.generation.requests import GenerationRequest
from tuneloop.generation.rollout_publisher import RolloutPublisher
from tuneloop.generation.service import model_formats
from tuneloop.generation.settings import GenerationSettings
from tuneloop.generation.swap.hot_swap import HotSwap, SwapOptions
from tuneloop.policies import WeightsKind
from tuneloop.rollouts import (
    ChatMessage,
    FinishReason,
    Prompt,
    Rollout,
    SamplingParameters,
    Tool,
    ToolUse,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
CASES = [
    pytest.param(
        (name, shape),
        id=f"{name}-{shape}",
        marks=[pytest.mark.vllm] * (name == "vllm")
        + [pytest.mark.slow] * (name == "vllm" and shape != "qwen3"),
    )
    for name in ("transformers", "vllm")
    for shape in SHAPES
]


@dataclass
class Answered:
    """One completion as a caller sees it."""

    deltas: list[Delta]
    final: Final

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def reasoning(self) -> str:
        return "".join(delta.reasoning for delta in self.deltas)

    @property
    def calls(self) -> tuple[ToolCallDelta, ...]:
        return merge_calls([call for delta in self.deltas for call in delta.tool_calls])


@dataclass
class Served:
    """A model that thinks, served; and the tokens that its engine said it sampled."""

    shape: str
    engine: Engine
    completions: Completions
    bus: MemoryBus
    publisher: RolloutPublisher
    sampled: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    asked: int = 0

    async def ask(
        self,
        *turns: ChatMessage,
        budget: int | None = None,
        tools: ToolUse | None = None,
        **sampling: Any,
    ) -> list[Answered]:
        self.asked += 1
        request = GenerationRequest(
            completion_id=f"c{self.asked}",
            prompt=Prompt(messages=turns, tool_use=tools),
            sampling=SamplingParameters(**{"temperature": 0.0, "max_tokens": 80} | sampling),
            tenant="default",
            user_hash="anonymous",
            policy_version=None,
            publish_rollout=True,
            clip_max_tokens=False,
            thinking_budget=budget,
        )
        events = [event async for batch in self.completions.stream(request) for event in batch]
        finals = sorted((e for e in events if isinstance(e, Final)), key=lambda f: f.index)
        deltas = [e for e in events if isinstance(e, Delta)]
        return [Answered([d for d in deltas if d.index == f.index], f) for f in finals]

    async def rollouts(self) -> list[Rollout]:
        """What was published since the last call."""
        await self.publisher.emptied.wait()
        events = self.bus.streams[subjects.ROLLOUTS].events
        found = [r for event in events for r in wire.decode_rollouts_generated(event.data)]
        events.clear()
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=CASES)
async def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    name, shape = request.param
    folder = tmp_path_factory.mktemp("thinker")
    model = make_thinker(folder / "model", shape)
    engine = make_engine(name, model, WeightsKind.LORA)
    await engine.start()
    bus = MemoryBus()
    publisher = RolloutPublisher(bus, buffer_size=100)
    publisher.start()
    options = SwapOptions(
        policy="tuneloop", replica="r", base_model=model, max_live_versions=2, max_lora_rank=16
    )
    store = Versions(folder, model).store
    tokenization = Tokenization(model)
    completions = Completions(
        engine=engine,
        limits=EngineLimits(max_model_len=1024, vocab_size=2000, max_logprobs=20),
        tokenization=tokenization,
        hot_swap=HotSwap(engine, store, options, publisher.publish_activation),
        publisher=publisher,
        max_concurrent=8,
        formats=model_formats(GenerationSettings(model=model), engine, tokenization),
    )
    served = Served(shape, engine, completions, bus, publisher)
    record_samples(served)
    yield served
    await publisher.stop(1)
    await engine.stop()


def record_samples(served: Served) -> None:
    """Note the tokens of the engine's outputs."""
    generate = served.engine.generate

    async def recorded(request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
        stream = generate(request)
        try:
            async for output in stream:
                key = (request.request_id, output.index)
                served.sampled.setdefault(key, []).extend(output.token_ids)
                yield output
        finally:
            await stream.aclose()

    served.engine.generate = recorded  # type: ignore[method-assign]


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


async def test_tokens_are_those_sampled_though_templates_drop_thoughts(served: Served) -> None:
    turns: list[ChatMessage] = []
    conversation = ((QUESTION, THOUGHT, ANSWER), (NEXT_QUESTION, NEXT_THOUGHT, NEXT_ANSWER))
    for question, thought, answer in conversation:
        turns.append(user(question))
        (answered,) = await served.ask(*turns)
        assert (answered.reasoning, answered.text) == (thought, answer)
        (rollout,) = await served.rollouts()
        assert (rollout.reasoning_text, rollout.completion_text) == (thought, answer)
        tokens = served.sampled[(rollout.completion_id, 0)]
        assert list(rollout.completion_token_ids) == tokens
        assert list(answered.final.token_ids) == tokens
        assert rollout.finish_reason is FinishReason.STOP
        tokenization = served.completions.tokenization
        rest = tokens[rollout.reasoning_tokens : -1]
        assert tokenization.decode(rest, skip_special_tokens=False) == answer
        assert answered.final.reasoning_tokens == rollout.reasoning_tokens > 0
        assert THOUGHT not in rollout.prompt_text
        turns.append(ChatMessage(role="assistant", content=answer, reasoning=thought))


async def test_several_completions_are_read_apart(served: Served) -> None:
    answers = await served.ask(user(QUESTION), n=3, temperature=1.0, seed=1, max_tokens=40)
    rollouts = {r.completion_id: r for r in await served.rollouts()}
    for answered in answers:
        rollout = rollouts[answered.final.completion_id]
        key = (answers[0].final.completion_id, answered.final.index)
        assert list(rollout.completion_token_ids) == served.sampled[key]
        assert answered.text == rollout.completion_text
        assert answered.reasoning == rollout.reasoning_text


async def test_a_stop_string_is_looked_for_in_the_answer_alone(served: Served) -> None:
    # "capital" is in the thought.
    (answered,) = await served.ask(user(QUESTION), stop=("capital", "ris"))
    assert (answered.reasoning, answered.text) == (THOUGHT, ANSWER[: ANSWER.index("ris")])
    assert answered.final.stop_sequence == "ris"
    assert answered.final.finish_reason is FinishReason.STOP
    (rollout,) = await served.rollouts()
    assert rollout.completion_token_ids == answered.final.token_ids
    sampled = served.sampled[(rollout.completion_id, 0)]
    assert list(rollout.completion_token_ids) == sampled[: len(rollout.completion_token_ids)]
    assert sum(s.end - s.start for s in rollout.policy_version_spans) == len(
        rollout.completion_token_ids
    )


async def test_a_schema_holds_for_the_answer_alone(served: Served) -> None:
    schema = json.dumps({"const": ANSWER})
    (answered,) = await served.ask(user(QUESTION), json_schema=schema)
    assert (answered.reasoning, answered.text) == (THOUGHT, json.dumps(ANSWER))
    (rollout,) = await served.rollouts()
    assert rollout.sampling.json_schema == schema
    assert rollout.sampling.structural_tag == ""


async def test_a_forced_call_follows_the_thought(served: Served) -> None:
    if served.completions.formats.tools is None:
        pytest.skip("the template of this shape has no place for functions")
    schema = {
        "type": "object",
        "properties": {"place": {"enum": ["sea"]}},
        "required": ["place"],
        "additionalProperties": False,
    }
    tool = Tool(name="dive", parameters=json.dumps(schema))
    use = ToolUse(tools=(tool,), required=True, single=True)
    tokenizer = served.completions.tokenization.tokenizer
    # White space in JSON, which the model was not taught to end.
    bias = {i: -100.0 for i in range(len(tokenizer)) if not tokenizer.decode([i]).strip()}
    asked = {"tools": use, "budget": 20, "max_tokens": 200, "logit_bias": bias}
    (answered,) = await served.ask(user(QUESTION), **asked)
    (call,) = answered.calls
    assert (call.name, json.loads(call.arguments)) == ("dive", {"place": "sea"})
    assert answered.text.strip() == ""
    assert "dive" not in answered.reasoning
    (rollout,) = await served.rollouts()
    assert "dive" in rollout.completion_text
    assert list(rollout.completion_token_ids) == served.sampled[(rollout.completion_id, 0)]


async def test_a_budget_ends_the_thought(served: Served) -> None:
    (whole,) = await served.ask(user(QUESTION))
    (short,) = await served.ask(user(QUESTION), budget=3)
    assert THOUGHT.startswith(short.reasoning)
    assert len(short.reasoning) < len(THOUGHT)
    assert 0 < short.final.reasoning_tokens < whole.final.reasoning_tokens
    assert short.text
    await served.rollouts()


async def test_a_thought_that_is_cut_off_is_no_answer(served: Served) -> None:
    (answered,) = await served.ask(user(QUESTION), max_tokens=7)
    (rollout,) = await served.rollouts()
    assert answered.text == rollout.completion_text == ""
    assert THOUGHT.startswith(answered.reasoning)
    assert rollout.reasoning_tokens == len(rollout.completion_token_ids) == 7


async def test_an_unknown_format_is_refused_with_those_there_are(served: Served) -> None:
    with pytest.raises(SettingsError, match=r"REASONING_PARSER=telepathy.*auto.*qwen3"):
        served.engine.reasoning_format("telepathy")
    for name in ("qwen3", "deepseek_r1", "openai_gptoss"):
        assert served.engine.reasoning_format(name) is not None


async def test_plain_text_is_completed_as_it_is(served: Served) -> None:
    request = GenerationRequest(
        completion_id="plain",
        prompt=Prompt(text="the sea"),
        sampling=SamplingParameters(max_tokens=3),
        tenant="default",
        user_hash="anonymous",
        policy_version=None,
        publish_rollout=True,
        clip_max_tokens=False,
    )
    events = [event async for batch in served.completions.stream(request) for event in batch]
    assert all(event.reasoning == "" for event in events if isinstance(event, Delta))
    (rollout,) = await served.rollouts()
    assert (rollout.reasoning_text, rollout.reasoning_tokens) == ("", 0)
