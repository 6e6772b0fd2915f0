"""What learning from feedback changed, in words."""

from collections.abc import Sequence

from tuneloop.api.feedback import Effect

NAMES = {
    "answer": "this answer",
    "edit": "your better answer",
    "chosen": "the better one",
    "rejected": "the other one",
}


def effects_in_words(effects: Sequence[Effect]) -> str:
    """Return what the newest version that learned from feedback changed; empty without one."""
    if not effects:
        return ""
    version = effects[-1]["policy_version"]
    its = [effect for effect in effects if effect["policy_version"] == version]
    edited = any(effect["text"] == "edit" for effect in its)
    names = NAMES | ({"answer": "what the model wrote"} if edited else {})
    parts = [
        f"{names.get(effect['text'], effect['text'])} is now {likelier(effect['times_as_likely'])}"
        for effect in its
    ]
    return f"Version {version} learned from it: {', '.join(parts)}."


def likelier(times: float) -> str:
    """Return a ratio of probabilities in words."""
    if times >= 1000:
        return "over 1,000 times as likely"
    if times < 0.001:
        return "less than 0.001 times as likely"
    if abs(times - 1) < 0.005:
        return "as likely as before"
    return f"{times:.3g} times as likely"
