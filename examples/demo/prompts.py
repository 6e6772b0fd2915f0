"""Questions for the demo: one part to chat and learn with, another never trained on."""

import random

TOPICS = [
    "the moon", "bread", "rivers", "bicycles", "honey", "volcanoes", "chess", "rain", "owls",
    "glass", "trains", "coffee", "snow", "bridges", "tea", "maps", "whales", "paper", "clocks",
    "gardens", "salt", "kites", "libraries", "apples", "tides", "candles", "horses", "mirrors",
    "deserts", "music",
]  # fmt: skip
FORMS = [
    "What is interesting about {}?",
    "Tell me about {}.",
    "Why do people like {}?",
    "Explain {} to a child.",
    "How would you describe {}?",
]


def questions(seed: int) -> tuple[list[str], list[str]]:
    """(for learning, for evaluation): no topic is in both, so the second part is truly fresh."""
    shuffled = random.Random(seed).sample(TOPICS, len(TOPICS))
    learning, evaluation = shuffled[:20], shuffled[20:]
    return (
        [form.format(topic) for topic in learning for form in FORMS],
        [form.format(topic) for topic in evaluation for form in FORMS],
    )
