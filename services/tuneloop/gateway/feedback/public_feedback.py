"""What a signed completion id allows without a key: to judge that completion, as its user."""

from tuneloop.errors import PermissionDenied
from tuneloop.feedback import Comparison, Feedback, Ranking
from tuneloop.gateway.completion_ids import user_hash_in


def check_own_completion(feedback: Feedback) -> None:
    """Raise `PermissionDenied` unless the user, and each completion, is the first completion's.

    The ids in `feedback` are checked already.
    """
    if feedback.user_hash != user_hash_in(feedback.completion_id):
        raise PermissionDenied("user: only a key may name another user", param="user")
    match feedback.judgement:
        case Comparison(chosen=chosen, rejected=rejected):
            named = (chosen, *rejected)
        case Ranking(completion_ids=named):
            pass
        case _:
            named = ()
    if any(user_hash_in(completion_id) != feedback.user_hash for completion_id in named):
        raise PermissionDenied(
            "completion_id: only a key may compare the completions of different users",
            param="completion_id",
        )
