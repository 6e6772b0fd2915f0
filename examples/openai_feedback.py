"""The OpenAI SDK as it is, with feedback on its answers: `python -m examples.openai_feedback`.

Every answer's `id` is what feedback names; with `n` above 1 it is the choice's `completion_id`. The
SDK's own `post` carries the feedback, so that the key, retries and time limits are the same.
"""

import os
from typing import Any

from openai import OpenAI

URL = os.environ.get("TUNELOOP_URL", "http://127.0.0.1:8000")


def send_feedback(client: OpenAI, **body: Any) -> str:
    """Store feedback; its id."""
    stored: Any = client.post("/feedback", body=body, cast_to=object)
    return str(stored["id"])


def main() -> None:
    """Ask, stream, and judge."""
    client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("TUNELOOP_API_KEY") or "none")

    stream = client.chat.completions.create(
        model="tuneloop",
        messages=[{"role": "user", "content": "Tell me a very short story."}],
        user="ann",
        stream=True,
    )
    completion_id = ""
    for chunk in stream:
        completion_id = chunk.id
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()
    send_feedback(client, kind="thumb", completion_id=completion_id, value="up", user="ann")
    print(f"thumb up for {completion_id}")

    answer = client.chat.completions.create(
        model="tuneloop",
        messages=[{"role": "user", "content": "A name for a cat?"}],
        n=2,
        user="ann",
    )
    first, second = answer.choices
    # `completion_id` is ours: the SDK keeps fields that it does not know as extras.
    chosen, rejected = (choice.model_extra["completion_id"] for choice in (first, second))
    send_feedback(client, kind="comparison", chosen=chosen, rejected=[rejected], user="ann")
    print(f"{first.message.content!r} is better than {second.message.content!r}")


if __name__ == "__main__":
    main()
