"""A LangChain chain whose answers are judged: `python -m examples.langchain_feedback`.

Needs `pip install langchain-openai`. LangChain keeps the id that feedback names in a message's
`response_metadata`, but not where it streams: there it is read from the response's headers.
"""

import os
from functools import reduce
from operator import add

from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

from tuneloop.client import Client


def main() -> None:
    """Run a chain, stream another, and judge both answers."""
    tuneloop = Client()
    model = ChatOpenAI(
        base_url=f"{tuneloop.connection.url}/v1",
        api_key=os.environ.get("TUNELOOP_API_KEY") or "none",
        model="tuneloop",
        max_tokens=64,
        include_response_headers=True,
    )
    prompt = ChatPromptTemplate.from_messages(
        [("system", "You answer in {language}."), ("user", "{question}")]
    )
    chain = prompt | model

    message = chain.invoke({"language": "English", "question": "What is a haiku?"})
    print(message.content)
    tuneloop.thumb(message.response_metadata["id"], "up")

    pieces = []
    for piece in chain.stream({"language": "English", "question": "And a limerick?"}):
        print(piece.content, end="", flush=True)
        pieces.append(piece)
    print()
    completion_id = reduce(add, pieces).response_metadata["headers"]["x-completion-id"]
    tuneloop.edit(completion_id, "A humorous poem of five lines.")
    print("judged both")


if __name__ == "__main__":
    main()
