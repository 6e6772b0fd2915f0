"""The backend: it alone talks to tuneloop, under its users' names."""

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Literal

from fastapi import Cookie, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from tuneloop.client import AsyncClient, AsyncStream
from tuneloop.errors import TuneloopError

PAGE = Path(__file__).with_name("page")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One client for all requests."""
    async with AsyncClient() as client:
        app.state.tuneloop = client
        yield


app = FastAPI(lifespan=lifespan)
User = Annotated[str, Cookie(alias="user")]


class Question(BaseModel):
    """What the page asks."""

    text: str = Field(min_length=1, max_length=4000)


class Judgement(BaseModel):
    """What the page's thumbs send."""

    completion_id: str
    value: Literal["up", "down"]


@app.get("/")
async def page(user: User = "") -> FileResponse:
    """The page; whoever has no name yet gets one. A real application knows its users."""
    response = FileResponse(PAGE / "index.html")
    if not user:
        response.set_cookie("user", secrets.token_hex(8), httponly=True, samesite="strict")
    return response


@app.post("/ask")
async def ask(question: Question, request: Request, user: User) -> StreamingResponse:
    """The answer as JSON lines: pieces of text, then the id that a thumb names."""
    stream = request.app.state.tuneloop.stream(question.text, user=user, max_tokens=128)
    return StreamingResponse(lines(stream), media_type="application/jsonl")


async def lines(stream: AsyncStream) -> AsyncIterator[str]:
    """What the page reads."""
    try:
        async with stream:
            async for piece in stream:
                yield json.dumps({"text": piece.text}) + "\n"
        completion = stream.completion
        done = {"completion_id": completion.id, "version": completion.policy_version}
        yield json.dumps(done) + "\n"
    except TuneloopError as error:
        yield json.dumps({"error": error.message}) + "\n"


@app.post("/thumb", status_code=202)
async def thumb(judgement: Judgement, request: Request, user: User) -> JSONResponse:
    """A thumb, under the user's name; pressing it again changes nothing."""
    client: AsyncClient = request.app.state.tuneloop
    try:
        receipt = await client.thumb(
            judgement.completion_id,
            judgement.value,
            user=user,
            id=f"{user}-{judgement.value}-{judgement.completion_id[-32:]}",
        )
    except TuneloopError as error:
        return JSONResponse({"error": error.message}, status_code=502)
    return JSONResponse({"id": receipt.id}, status_code=202)


app.mount("/page", StaticFiles(directory=PAGE), name="page")
