"""Completion ids: made, checked, forged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.gateway.completion_ids import CompletionIds
from tuneloop.gateway.errors import CompletionNotFound, FeedbackNotFound
from tuneloop.rollouts import choice_id

IDS = CompletionIds(b"one secret of many")


def test_an_id_tells_for_whom_it_was_made() -> None:
    user_hash = IDS.user_hash("default", "ann")
    made = IDS.make("chatcmpl", "default", user_hash, 4)
    assert IDS.check("default", made, "completion_id").user_hash == user_hash
    assert IDS.check("default", choice_id(made, 3), "completion_id").value == f"{made}.3"
    assert choice_id(made, 0) == made
    assert made.startswith("chatcmpl-")
    assert len(made) == len("chatcmpl-") + 60


def test_a_response_has_an_id_of_its_own_form() -> None:
    made = IDS.make("resp", "default", IDS.user_hash("default", "ann"))
    assert made.startswith("resp_")
    assert IDS.check("default", made, "completion_id").value == made
    for other in (made.replace("_", "-"), made.replace("resp_", "msg_")):
        with pytest.raises(CompletionNotFound):
            IDS.check("default", other, "completion_id")


def test_a_named_id_can_be_made_again_and_not_guessed() -> None:
    ann, bob = IDS.user_hash("default", "ann"), IDS.user_hash("default", "bob")
    made = IDS.make("chatcmpl", "default", ann, name="chat 1, message 2")
    assert made == IDS.make("chatcmpl", "default", ann, name="chat 1, message 2")
    assert IDS.check("default", made, "completion_id").user_hash == ann
    others = {
        IDS.make("chatcmpl", "default", ann, name="chat 1, message 3"),
        IDS.make("chatcmpl", "default", bob, name="chat 1, message 2"),
        IDS.make("chatcmpl", "other", ann, name="chat 1, message 2"),
        CompletionIds(b"another secret").make("chatcmpl", "default", ann, name="chat 1, message 2"),
    }
    assert made not in others
    assert len(others) == 4


@pytest.mark.parametrize("n", [1, 2, 64])
def test_a_choice_that_was_never_asked_for_is_refused(n: int) -> None:
    made = IDS.make("chatcmpl", "default", IDS.user_hash("default", "ann"), n)
    assert IDS.check("default", choice_id(made, n - 1), "chosen").value == choice_id(made, n - 1)
    with pytest.raises(CompletionNotFound):
        IDS.check("default", choice_id(made, n), "chosen")


def test_no_user_is_one_user() -> None:
    assert IDS.user_hash("default", None) == IDS.user_hash("default", "anonymous")
    assert IDS.user_hash("default", None) == IDS.user_hash("default", "")
    assert IDS.user_hash("a", "x") != IDS.user_hash("b", "x")


@given(position=st.integers(9, 68), digit=st.sampled_from("0123456789abcdef"))
def test_any_changed_digit_is_refused(position: int, digit: str) -> None:
    made = IDS.make("chatcmpl", "default", IDS.user_hash("default", "ann"))
    forged = made[:position] + digit + made[position + 1 :]
    if forged == made:
        return
    with pytest.raises(CompletionNotFound):
        IDS.check("default", forged, "completion_id")


@pytest.mark.parametrize("suffix", [".0", ".01", ".-1", ".1000", ".1.1", ".", " ", "\n", ".१"])
def test_other_suffixes_are_refused(suffix: str) -> None:
    made = IDS.make("cmpl", "default", IDS.user_hash("default", None))
    with pytest.raises(CompletionNotFound):
        IDS.check("default", made + suffix, "chosen")


def test_ids_of_another_tenant_or_secret_are_refused() -> None:
    made = IDS.make("cmpl", "default", IDS.user_hash("default", None))
    with pytest.raises(CompletionNotFound):
        IDS.check("other", made, "completion_id")
    with pytest.raises(CompletionNotFound) as refused:
        CompletionIds(b"quite another secret").check("default", made, "completion_id")
    assert refused.value.param == "completion_id"


def test_a_receipt_names_its_feedback_and_is_the_same_each_time() -> None:
    receipt = IDS.receipt("default", "click-17")
    assert receipt == IDS.receipt("default", "click-17")
    assert receipt.startswith("click-17.")
    assert IDS.feedback_of_receipt("default", receipt) == "click-17"


@given(
    text=st.text(max_size=200), feedback_id=st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True)
)
def test_what_was_not_signed_is_no_receipt(text: str, feedback_id: str) -> None:
    signed = IDS.receipt("default", feedback_id)
    for forged in (text, f"{feedback_id}.{text}", f"x{signed}", signed[:-1], signed.upper() + "0"):
        with pytest.raises(FeedbackNotFound) as refused:
            IDS.feedback_of_receipt("default", forged)
        assert refused.value.param == "receipt"
    for ids, tenant in ((IDS, "other"), (CompletionIds(b"quite another secret"), "default")):
        with pytest.raises(FeedbackNotFound):
            ids.feedback_of_receipt(tenant, signed)
