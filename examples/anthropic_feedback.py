"""The Anthropic SDK as it is, with feedback: `python -m examples.anthropic_feedback`.

A message's `id` is what feedback names. The SDK's own `post` carries the feedback, so that the key,
retries and time limits are the same.
"""

import os
from typing import Any

from anthropic import Anthropic

URL = os.environ.get("TUNELOOP_URL", "http://127.0.0.1:8000")


def main() -> None:
    """Ask, stream, and judge."""
    client = Anthropic(base_url=URL, api_key=os.environ.get("TUNELOOP_API_KEY") or "none")
    with client.messages.stream(
        model="tuneloop",
        max_tokens=256,
        system="You answer in one sentence.",
        messages=[{"role": "user", "content": "Why is the sky blue?"}],
        metadata={"user_id": "ann"},
    ) as stream:
        for text in stream.text_stream:
            print(text, end="", flush=True)
        message = stream.get_final_message()
    print()
    thumb = {"kind": "thumb", "completion_id": message.id, "value": "up", "user": "ann"}
    stored: Any = client.post("/v1/feedback", body=thumb, cast_to=object)
    print(f"thumb up for {message.id}: {stored['status']}")


if __name__ == "__main__":
    main()
