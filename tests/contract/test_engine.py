"""What every engine must do, with LoRA versions; the same tests over both engines."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from support.engine_helpers import Versions, complete, make_adapter, make_engine, teacher_forced

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.bus.memory import MemoryBus
from tuneloop.errors import InvalidRequest, SettingsError, WeightsRefused
from tuneloop.generation.completions import Completions
from tuneloop.generation.engine import Engine, EngineLimits, EngineRequest
from tuneloop.generation.formats.tool_calls import merge_calls
from tuneloop.generation.partial_completion import Delta, Final
from tuneloop.generation.prompts import Tokenization
from tuneloop.generation.requests import GenerationRequest
from tuneloop.generation.rollout_publisher import RolloutPublisher
from tuneloop.generation.swap.hot_swap import HotSwap, SwapOptions
from tuneloop.policies import WeightsKind
from tuneloop.rollouts import (
    FinishReason,
    PolicyVersionSpan,
    Prompt,
    SamplingParameters,
    Tool,
    ToolUse,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
PROMPT = (1, 300, 310, 320)
NO_EOS = {2: -100.0, 0: -100.0, 3: -100.0}
"""Keeps a random model from ending its turn."""


@pytest.fixture(scope="module")
def adapters(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {v: make_adapter(tiny_policy, root / str(v), seed=v) for v in (1, 2)}


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm)],
)
async def engine(request: pytest.FixtureRequest, tiny_policy: Path) -> AsyncIterator[Engine]:
    engine = make_engine(request.param, tiny_policy, WeightsKind.LORA)
    await engine.start()
    yield engine
    await engine.stop()


async def test_streams_token_by_token_until_the_limit(engine: Engine) -> None:
    (answer,) = await complete(engine, PROMPT, max_tokens=12, logit_bias=NO_EOS)
    assert len(answer.outputs) > 3
    assert len(answer.token_ids) == len(answer.logprobs) == 12
    assert answer.finish_reason is FinishReason.LENGTH
    assert all(o.finish_reason is None for o in answer.outputs[:-1])
    assert answer.spans == (PolicyVersionSpan(policy_version=0, start=0, end=12),)


async def test_ends_at_the_end_of_turn_token_and_reports_it(engine: Engine) -> None:
    (answer,) = await complete(engine, PROMPT, logit_bias={2: 100.0})
    assert answer.token_ids == [2]
    assert answer.text == ""
    assert answer.finish_reason is FinishReason.STOP
    assert answer.outputs[-1].stop_sequence == ""


async def test_a_stop_string_ends_the_completion_and_is_not_in_the_text(engine: Engine) -> None:
    greedy = {"temperature": 0.0, "max_tokens": 24, "logit_bias": NO_EOS}
    (whole,) = await complete(engine, PROMPT, version=0, **greedy)
    stop = whole.text[8:11]
    assert len(stop) == 3
    (answer,) = await complete(engine, PROMPT, stop=("never seen", stop), **greedy)
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.finish_reason is FinishReason.STOP
    assert answer.outputs[-1].stop_sequence == stop
    assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]


SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["river", "sea"]}, "deep": {"type": "boolean"}},
    "required": ["kind", "deep"],
    "additionalProperties": False,
}
WIDE = {"max_tokens": 300, "logit_bias": dict.fromkeys((201, 202, 205, 224), -100.0)}
"""Room for a small object, whose white space a random model likes too much."""


async def test_a_completion_fits_its_json_schema(engine: Engine) -> None:
    sampling = {"json_schema": json.dumps(SCHEMA), "n": 2} | WIDE
    for answer in await complete(engine, PROMPT, **sampling):
        document = json.loads(answer.text)
        assert document["kind"] in ("river", "sea")
        assert isinstance(document["deep"], bool)
        assert answer.finish_reason is FinishReason.STOP
        # Of the tokens that fit: where only one does, it was certain.
        assert max(answer.logprobs) == pytest.approx(0, abs=1e-4)
        assert min(answer.logprobs) < -0.1


async def test_the_bytes_of_the_tokens_are_the_answer(engine: Engine, tiny_policy: Path) -> None:
    """A tiny vocabulary has no ideograph: each is three tokens."""
    texts = Tokenization(tiny_policy).token_texts
    schema = json.dumps({"const": "漢😀 été"}, ensure_ascii=False)
    for n, top in ((1, 2), (2, 0)):
        sampling = {"json_schema": schema, "n": n, "top_logprobs": top} | WIDE
        for answer in await complete(engine, PROMPT, **sampling):
            assert "漢😀 été" in answer.text
            joined = b"".join(texts[token].data for token in answer.token_ids)
            assert joined == answer.text.encode()


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nothing"},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/missing"}}},
        {"type": "string", "pattern": "("},
    ],
)
async def test_a_schema_that_is_none_is_refused_by_name(engine: Engine, schema: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await complete(engine, PROMPT, json_schema=json.dumps(schema))
    assert refused.value.param == "response_format"
    assert len(await complete(engine, PROMPT, max_tokens=2)) == 1


async def test_a_forced_call_is_made_and_read(engine: Engine) -> None:
    tools = (Tool(name="dive", parameters=json.dumps(SCHEMA)), Tool(name="swim"))
    tool_format = engine.tool_format("hermes")
    for use, name in (
        (ToolUse(tools=tools, name="dive", single=True), "dive"),
        (ToolUse(tools=tools[:1], required=True, single=True), "dive"),
    ):
        tag = tool_format.structural_tag(use)
        (answer,) = await complete(engine, PROMPT, structural_tag=tag, with_tools=True, **WIDE)
        parser = tool_format.parser(use)
        text, calls = "", []
        for output in answer.outputs:
            ends = output.finish_reason is not None
            more, found = parser.feed(output.text, output.token_ids, ends=ends)
            text, calls = text + more, [*calls, *found]
        (call,) = merge_calls(calls)
        assert (call.index, call.name, bool(call.call_id), text) == (0, name, True, "")
        assert json.loads(call.arguments)["kind"] in ("river", "sea")
    assert tool_format.structural_tag(ToolUse(tools=tools)) == ""
    assert tool_format.structural_tag(ToolUse(tools=(replace(tools[0], strict=True),)))
    for name in ("semaphore", "mistral"):
        with pytest.raises(SettingsError, match=f"TOOL_PARSER={name}"):
            engine.tool_format(name)


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        ("nothing to call, 1 < 2 <tool", "nothing to call, 1 < 2 <tool", []),
        ("let me see <tool_call>\n{CALL_A}\n</tool_call>", "let me see ", ["a"]),
        ("<tool_call>{CALL_A}</tool_call>\n<tool_call>{CALL_B}</tool_call>", "", ["a", "b"]),
    ],
)
async def test_calls_are_read_in_pieces_of_any_size(
    engine: Engine, text: str, content: str, names: list[str], size: int
) -> None:
    spelled = {f"CALL_{n.upper()}": json.dumps({"name": n, "arguments": {"x": n}}) for n in "ab"}
    for key, call in spelled.items():
        text = text.replace(f"{{{key}}}", call)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    tools = (Tool(name="a"), Tool(name="b"))
    for single in (False, True):
        parser = engine.tool_format("hermes").parser(ToolUse(tools=tools, single=single))
        said, calls = "", []
        for position, piece in enumerate([*pieces, ""]):
            more, found = parser.feed(piece, (), ends=position == len(pieces))
            said, calls = said + more, [*calls, *found]
        expected = names[:1] if single else names
        assert [call.name for call in merge_calls(calls)] == expected
        assert [json.loads(call.arguments) for call in merge_calls(calls)] == [
            {"x": name} for name in expected
        ]
        assert said.strip() == content.strip()


async def test_n_completions_of_one_prompt_differ(engine: Engine) -> None:
    answers = await complete(engine, PROMPT, n=3, seed=7, logit_bias=NO_EOS)
    assert len(answers) == 3
    assert len({tuple(a.token_ids) for a in answers}) == 3
    assert all(a.finish_reason is FinishReason.LENGTH for a in answers)


async def test_a_seed_makes_sampling_repeatable(engine: Engine) -> None:
    (first,) = await complete(engine, PROMPT, seed=11)
    (again,) = await complete(engine, PROMPT, seed=11)
    (other,) = await complete(engine, PROMPT, seed=12)
    assert first.token_ids == again.token_ids
    assert first.token_ids != other.token_ids


async def test_a_seed_holds_where_a_prompt_is_computed_in_parts(engine: Engine) -> None:
    # On a CPU vLLM computes 256 tokens at a time; the second time they are in its cache.
    prompt = PROMPT + tuple(range(310, 330)) * 15
    (first,) = await complete(engine, prompt, seed=11)
    (again,) = await complete(engine, prompt, seed=11)
    assert first.token_ids == again.token_ids


async def test_logprobs_are_those_of_a_forward_pass_at_the_temperature(
    engine: Engine, tiny_policy: Path
) -> None:
    (answer,) = await complete(engine, PROMPT, temperature=0.7, logit_bias={})
    expected = teacher_forced(tiny_policy, None, PROMPT, answer.token_ids, 0.7)
    assert answer.logprobs == pytest.approx(expected, abs=2e-3)


async def test_logprobs_are_of_the_nucleus_that_was_sampled(engine: Engine) -> None:
    (answer,) = await complete(engine, PROMPT, top_k=1)
    assert answer.logprobs == pytest.approx([0.0] * len(answer.logprobs), abs=1e-5)
    (answer,) = await complete(engine, PROMPT, top_p=0.05, top_logprobs=20)
    for output in answer.outputs:
        for chosen, top in zip(output.logprobs, output.top_logprobs, strict=True):
            mass = sum(2.718281828**c.logprob for c in top)
            assert mass == pytest.approx(1.0, abs=1e-4)
            assert chosen in [pytest.approx(c.logprob, abs=1e-5) for c in top]


async def test_alternatives_come_best_first_and_only_when_asked_for(engine: Engine) -> None:
    (answer,) = await complete(engine, PROMPT, temperature=0.0, top_logprobs=3)
    for output in answer.outputs:
        for token, top in zip(output.token_ids, output.top_logprobs, strict=True):
            assert len(top) == 3
            assert top[0].token_id == token
            assert [c.logprob for c in top] == sorted((c.logprob for c in top), reverse=True)
    (answer,) = await complete(engine, PROMPT)
    assert all(o.top_logprobs == () for o in answer.outputs)


async def test_penalties_forbid_repetition(engine: Engine) -> None:
    options = {"temperature": 0.0, "max_tokens": 24, "logit_bias": {40: 1.5}}
    (repeating,) = await complete(engine, PROMPT, **options)
    (varied,) = await complete(engine, PROMPT, presence_penalty=2.0, **options)
    assert len(set(varied.token_ids)) > len(set(repeating.token_ids))


@pytest.mark.parametrize(
    ("prompt", "sampling", "param"),
    [
        ((), {}, "messages"),
        ((1,) * 512, {}, "messages"),
        ((1,) * 500, {"max_tokens": 13}, "max_tokens"),
        ((999_999,), {}, "prompt"),
        ((1,), {"logit_bias": {999_999: 1.0}}, "logit_bias"),
        ((1,), {"top_logprobs": 21}, "top_logprobs"),
    ],
)
async def test_what_the_model_cannot_serve_is_refused(
    engine: Engine, prompt: tuple[int, ...], sampling: dict[str, object], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await complete(engine, prompt, **sampling)
    assert refusal.value.param == param


async def test_closing_the_stream_frees_the_engine_for_others(engine: Engine) -> None:
    request = EngineRequest(
        request_id="left",
        prompt_token_ids=PROMPT,
        sampling=SamplingParameters(temperature=1.0, max_tokens=500, logit_bias=NO_EOS),
        policy_version=0,
    )
    stream = engine.generate(request)
    await anext(stream)
    await stream.aclose()
    await complete(engine, PROMPT, request_id="next")
    # The same id may be used again: nothing of the first request is left.
    (answer,) = await complete(engine, PROMPT, request_id="left", logit_bias=NO_EOS)
    assert len(answer.token_ids) == 16


async def test_requests_stream_at_the_same_time(engine: Engine) -> None:
    order: list[int] = []

    async def follow(i: int) -> None:
        request = EngineRequest(
            request_id=f"together-{i}",
            prompt_token_ids=PROMPT,
            sampling=SamplingParameters(temperature=1.0, max_tokens=20, logit_bias=NO_EOS),
            policy_version=0,
        )
        async for _ in engine.generate(request):
            order.append(i)

    await asyncio.gather(*(follow(i) for i in range(4)))
    # No request waits for another to end.
    assert set(order[: len(order) // 2]) == {0, 1, 2, 3}


async def test_an_adapter_swap_mid_stream_leaves_requests_on_their_version(
    engine: Engine, tiny_policy: Path, adapters: dict[int, Path]
) -> None:
    await engine.load_adapter(1, adapters[1])
    loaded = asyncio.Event()

    async def old() -> list[int]:
        request = EngineRequest(
            request_id="old",
            prompt_token_ids=PROMPT,
            sampling=SamplingParameters(temperature=0.0, max_tokens=60, logit_bias=NO_EOS),
            policy_version=1,
            adapter=1,
        )
        tokens: list[int] = []
        async for output in engine.generate(request):
            tokens += output.token_ids
            if len(tokens) == 5:
                await engine.load_adapter(2, adapters[2])
                loaded.set()
            if output.finish_reason is not None:
                assert output.policy_version_spans == (
                    PolicyVersionSpan(policy_version=1, start=0, end=60),
                )
        return tokens

    old_request = asyncio.create_task(old())
    await loaded.wait()
    (new,) = await complete(engine, PROMPT, version=2, temperature=0.8, request_id="new")
    (base,) = await complete(engine, PROMPT, version=0, temperature=0.8, request_id="base")
    old_tokens = await old_request
    (alone,) = await complete(
        engine, PROMPT, version=1, temperature=0.0, max_tokens=60, logit_bias=NO_EOS
    )
    assert old_tokens == alone.token_ids
    for answer, adapter in ((new, adapters[2]), (base, None)):
        expected = teacher_forced(tiny_policy, adapter, PROMPT, answer.token_ids, 0.8)
        assert answer.logprobs == pytest.approx(expected, abs=5e-3)
    other = teacher_forced(tiny_policy, None, PROMPT, new.token_ids, 0.8)
    assert new.logprobs != pytest.approx(other, abs=5e-2)
    await engine.drop_adapter(1)
    await engine.drop_adapter(2)


async def test_many_versions_sample_in_one_batch_each_by_its_own_weights(
    engine: Engine, tiny_policy: Path, adapters: dict[int, Path]
) -> None:
    # As many as fit, one of them gone again: its place must not leak into the base model.
    folders = {v: adapters[1 + v % 2] for v in (21, 22, 23, 24)}
    for version, folder in folders.items():
        await engine.load_adapter(version, folder)
    await engine.drop_adapter(24)
    versions = [0, 21, 0, 22, 23, 0]
    answers = await asyncio.gather(
        *(
            complete(engine, PROMPT, version=v, request_id=f"mixed-{i}", max_tokens=24)
            for i, v in enumerate(versions)
        )
    )
    for version, (answer,) in zip(versions, answers, strict=True):
        adapter = folders.get(version)
        expected = teacher_forced(tiny_policy, adapter, PROMPT, answer.token_ids, 1.0)
        assert answer.logprobs == pytest.approx(expected, abs=5e-3), version
    for version in (21, 22, 23):
        await engine.drop_adapter(version)


async def test_an_adapter_that_cannot_be_loaded_is_refused_and_changes_nothing(
    engine: Engine, tiny_policy: Path, tmp_path: Path
) -> None:
    (before,) = await complete(engine, PROMPT, temperature=0.0)
    with pytest.raises(WeightsRefused):
        await engine.load_adapter(3, tmp_path / "absent")
    (after,) = await complete(engine, PROMPT, temperature=0.0)
    assert before.token_ids == after.token_ids


async def test_five_swaps_under_eight_concurrent_streams(
    engine: Engine, tiny_policy: Path, adapters: dict[int, Path], tmp_path: Path
) -> None:
    versions = Versions(tmp_path, tiny_policy)
    references = [versions.publish(v, adapters[1 + v % 2]) for v in range(11, 16)]
    options = SwapOptions(
        policy="tuneloop",
        replica="test",
        base_model=tiny_policy,
        max_live_versions=2,
        max_lora_rank=16,
    )
    bus = MemoryBus()
    publisher = RolloutPublisher(bus, buffer_size=1000)
    publisher.start()
    hot_swap = HotSwap(engine, versions.store, options, publisher.publish_activation)
    completions = Completions(
        engine=engine,
        limits=EngineLimits(max_model_len=512, vocab_size=384, max_logprobs=20),
        tokenization=Tokenization(tiny_policy),
        hot_swap=hot_swap,
        publisher=publisher,
        max_concurrent=8,
    )
    done = asyncio.Event()
    finals: list[Final] = []

    async def client(i: int) -> None:
        turn, last = 0, False
        while not last:
            last = done.is_set()  # one more request after the last swap
            finals.append(await one_answer(completions, f"client-{i}-turn-{turn}"))
            turn += 1

    async def swap() -> None:
        for reference in references:
            seen = len(finals)
            while len(finals) < seen + 4:
                await asyncio.sleep(0.01)
            await hot_swap.activate(reference)
        done.set()

    await asyncio.gather(swap(), *(client(i) for i in range(8)))
    await publisher.stop(10)
    assert {f.policy_version for f in finals} >= {0, 15}
    assert all(f.finish_reason is FinishReason.LENGTH and len(f.token_ids) == 30 for f in finals)
    assert all(len(f.policy_version_spans) == 1 for f in finals)
    assert [v.leases for v in hot_swap.loaded_versions()] == [0] * len(hot_swap.live)
    assert len(hot_swap.adapters()) <= 2
    events = bus.streams[subjects.ROLLOUTS].events
    stored = [r for event in events for r in wire.decode_rollouts_generated(event.data)]
    assert {r.completion_id for r in stored} == {f.completion_id for f in finals}
    for live in hot_swap.adapters():
        await engine.drop_adapter(live.adapter)


async def one_answer(completions: Completions, completion_id: str) -> Final:
    """One request to its end; its deltas must add up to its final."""
    request = GenerationRequest(
        completion_id=completion_id,
        prompt=Prompt(token_ids=PROMPT),
        sampling=SamplingParameters(temperature=1.0, max_tokens=30, logit_bias=NO_EOS),
        tenant="default",
        user_hash="anonymous",
        policy_version=None,
        publish_rollout=True,
        clip_max_tokens=False,
    )
    events = [event async for batch in completions.stream(request) for event in batch]
    final = events[-1]
    assert isinstance(final, Final)
    deltas = [event for event in events if isinstance(event, Delta)]
    assert tuple(t for delta in deltas for t in delta.token_ids) == final.token_ids
    assert {delta.policy_version for delta in deltas} == {final.policy_version}
    return final
