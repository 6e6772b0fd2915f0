"""Errors in Anthropic's form, which every path under `/v1/messages` answers.

    {"type": "error", "error": {"type": …, "message": …}, "request_id": "req_…"}

A service that is at its limit is status 529, as Anthropic's clients expect; other statuses stay.
"""

import logging
import secrets
from collections.abc import Mapping

from tuneloop.api.anthropic import AnthropicError
from tuneloop.api.openai import Error

logger = logging.getLogger("tuneloop.gateway")

PATH = "/v1/messages"
OVERLOADED = 529

type_of_status: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    OVERLOADED: "overloaded_error",
}
"""Any other status is an `invalid_request_error`."""


def speaks_anthropic(path: str) -> bool:
    """Return whether errors of a path have Anthropic's form."""
    return path == PATH or path.startswith(f"{PATH}/")


def anthropic_error(status: int, error: Error) -> tuple[int, AnthropicError]:
    """Return the status and the document for those of OpenAI's form."""
    details = error["error"]
    if details["code"] == "overloaded":
        status = OVERLOADED
    message = details["message"]
    request_id = f"req_{secrets.token_hex(12)}"
    if status >= 500:
        logger.warning("%s failed: %s", request_id, message)
    kind = type_of_status.get(status, "invalid_request_error")
    return status, {
        "type": "error",
        "error": {"type": kind, "message": message},
        "request_id": request_id,
    }
