"""OpenAI's Responses as they are, with feedback: `python -m examples.responses_feedback`.

A response's `id` is what feedback on it names. Responses that go on from one another are a session,
which is called as the first: feedback that names it judges all of them.
"""

import os
from typing import Any

from openai import OpenAI

URL = os.environ.get("TUNELOOP_URL", "http://127.0.0.1:8000")


def main() -> None:
    """Ask, go on, and judge the conversation."""
    client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("TUNELOOP_API_KEY") or "none")
    first = client.responses.create(model="tuneloop", input="Why is the sky blue?", user="ann")
    print(first.output_text)
    stream = client.responses.create(
        model="tuneloop",
        input="And in the evening?",
        previous_response_id=first.id,
        user="ann",
        stream=True,
    )
    for event in stream:
        if event.type == "response.output_text.delta":
            print(event.delta, end="", flush=True)
    print()
    thumb = {"kind": "thumb", "session_id": first.id, "value": "up", "user": "ann"}
    stored: Any = client.post("/feedback", body=thumb, cast_to=object)
    print(f"thumb up for the conversation: {stored['status']}")


if __name__ == "__main__":
    main()
