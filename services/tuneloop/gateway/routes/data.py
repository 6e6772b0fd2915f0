"""`/v1/export` and `/v1/import`: collected data, in the columns that trainers read."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import grpc
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import StreamingResponse

from tuneloop import wire
from tuneloop.api.feedback import ImportResult
from tuneloop.errors import InvalidRequest
from tuneloop.gateway.context import gateway_of
from tuneloop.gateway.feedback.browse import Tags
from tuneloop.gateway.openai.schemas import INT64_MAX
from tuneloop.rollouts import read_tag
from tuneloop.rpc.status import error_from_rpc, reply_of
from tuneloop.text.messages import Text
from tuneloop.v1 import learner_pb2

router = APIRouter(tags=["data"])

IMPORT_TIMEOUT = 120.0
MAX_ROWS = 1000

ExportKind = Literal["pairs", "thumbs", "demonstrations", "metrics", "rollouts"]


class RowsResponse(StreamingResponse):
    """JSON lines."""

    media_type = "application/x-ndjson"


@router.get("/v1/export", response_class=RowsResponse)
async def export(
    request: Request,
    *,
    kind: ExportKind,
    format: Literal["jsonl"] = "jsonl",
    policy_version: Annotated[int | None, Query(ge=0, le=INT64_MAX)] = None,
    since: datetime | None = None,
    tag: Tags = (),
) -> RowsResponse:
    """Export collected data as JSON lines, oldest first, in TRL's columns."""
    question = learner_pb2.ExportDataRequest(
        kind=kind, policy_version=policy_version, tags=dict(map(read_tag, tag))
    )
    if since is not None:
        question.since.CopyFrom(wire.timestamp(in_utc(since)))
    call = gateway_of(request).learner.ExportData(question)
    # Whatever is wrong shows before the first rows, while there still is a status to answer.
    first: Any = await reply_of(call.read())
    return RowsResponse(
        lines(call, first),
        headers={"content-disposition": f'attachment; filename="{kind}.{format}"'},
    )


def in_utc(since: datetime) -> datetime:
    """Return the time in UTC, the zone of a time without one. Raises `InvalidRequest`."""
    try:
        return since.replace(tzinfo=since.tzinfo or UTC).astimezone(UTC)
    except OverflowError as error:
        raise InvalidRequest("since: out of the years 1 to 9999", param="since") from error


async def lines(call: Any, first: Any) -> AsyncIterator[bytes]:
    """Yield the rows, one a line; closing it ends the call."""
    message = first
    try:
        while message is not grpc.aio.EOF:
            yield "".join(f"{row}\n" for row in message.rows).encode()
            message = await call.read()
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from error
    finally:
        call.cancel()


class ImportRow(BaseModel):
    """A row of a file, and where it stands there."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    place: Text = Field(min_length=1, max_length=1024)
    row: dict[Text, Any]
    occurrence: int = Field(0, ge=0, le=2**31 - 1)
    """The number of equal rows before it in its file."""


class ImportRequest(BaseModel):
    """Judgements of texts that this service did not generate."""

    model_config = ConfigDict(
        extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    kind: Literal["pairs", "thumbs", "demonstrations", "metrics"]
    rows: list[ImportRow] = Field(min_length=1, max_length=MAX_ROWS)


@router.post("/v1/import")
async def import_rows(body: ImportRequest, request: Request) -> ImportResult:
    """Add rows to the ledger: all of them, or none if one is wrong. Safe to repeat."""
    question = learner_pb2.ImportDataRequest(
        kind=body.kind,
        rows=[
            learner_pb2.ImportedRow(
                place=row.place,
                row=json.dumps(row.row),
                occurrence=row.occurrence,
            )
            for row in body.rows
        ],
    )
    answer: learner_pb2.ImportDataResponse = await reply_of(
        gateway_of(request).learner.ImportData(question, timeout=IMPORT_TIMEOUT)
    )
    return {"kind": body.kind, "added": answer.added, "known": answer.known}
