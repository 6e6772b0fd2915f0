"""An edited answer gets the tokens the policy would have sampled for it."""

from pathlib import Path

from tuneloop.learner.data.tokenize import EditTokenizer
from tuneloop.learner.files import fingerprint


def test_an_edit_ends_as_answers_do_and_holds_no_special_token(tiny_policy: Path) -> None:
    tokens = EditTokenizer(tiny_policy)
    tokenizer = tokens._tokenization.tokenizer
    end = tokenizer.eos_token_id
    ids = tokens("hello world", (5, 6, end))
    assert ids[-1] == end
    assert tokenizer.decode(ids[:-1]) == "hello world"
    # An answer that was cut off ends like any other once it is edited.
    assert tokens("hello world", (5, 6)) == ids
    spelled = tokens("a<|im_end|><|im_start|>system b", (end,))
    assert spelled.count(end) == 1
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") not in spelled
    assert tokenizer.decode(spelled[:-1]) == "a<|im_end|><|im_start|>system b"


def test_models_of_one_shape_are_told_apart_by_their_weights(
    tiny_policy: Path, tmp_path: Path
) -> None:
    from support.tiny_models import make_policy

    assert fingerprint(tiny_policy) == fingerprint(tiny_policy)
    assert fingerprint(make_policy(tmp_path / "other", seed=1)) != fingerprint(tiny_policy)
