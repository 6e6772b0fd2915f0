"""Deltas are joined to completions."""

from tuneloop.generation.partial_completion import Delta, Final
from tuneloop.generation.servicer import join_deltas
from tuneloop.rollouts import FinishReason


def make_delta(index: int, token: int) -> Delta:
    return Delta(
        index=index,
        text=str(token),
        token_ids=(token,),
        logprobs=(-1.0,),
        top_logprobs=(),
        policy_version=0,
    )


def test_deltas_of_one_completion_are_joined_up_to_its_final() -> None:
    final = Final(
        index=0,
        completion_id="c",
        token_ids=(1, 2),
        logprobs=(-1.0, -1.0),
        finish_reason=FinishReason.STOP,
        policy_version_spans=(),
        policy_version=0,
        prompt_tokens=1,
    )
    events = join_deltas(
        [make_delta(0, 1), make_delta(1, 7), make_delta(0, 2), final, make_delta(1, 8)]
    )
    assert [getattr(e, "token_ids", None) for e in events] == [(1, 2), (7, 8), (1, 2)]
    assert events[2] is final
