"""Every error tuneloop raises on purpose, and what each means to a caller.

    TuneloopError
    ├── InvalidRequest          the caller's input is wrong         400  INVALID_ARGUMENT
    │   └── CorruptData         bytes that do not parse: event, checkpoint, weights, manifest
    │       └── WeightsRefused  a version that must not be loaded (hash, signature, shape)
    ├── Unauthenticated         no key, or a wrong one              401  UNAUTHENTICATED
    ├── PermissionDenied        a key without the right             403  PERMISSION_DENIED
    ├── CallerRefused           a process that may not call this    500  PERMISSION_DENIED
    ├── NotFound                no such policy, version, feedback   404  NOT_FOUND
    ├── Conflict                same id, other content              409  ALREADY_EXISTS
    ├── FailedPrecondition      not in this state                   412  FAILED_PRECONDITION
    ├── Overloaded              a queue is full; try again          429  RESOURCE_EXHAUSTED
    ├── Unavailable             a part is down or draining          503  UNAVAILABLE
    └── SettingsError           a setting stops the process at start

Transport codes are assigned in `tuneloop.rpc` and `tuneloop.gateway`; nothing here knows of them.
"""


class TuneloopError(Exception):
    """The base class; `reason` is a stable word for programs, the message is for people."""

    reason = "INTERNAL"

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        """The field at fault, if there is one."""
        self.retry_after = retry_after
        """Seconds after which to retry, if that makes sense."""


class InvalidRequest(TuneloopError):
    """The caller's input is wrong."""

    reason = "INVALID_REQUEST"


class CorruptData(InvalidRequest):
    """Bytes that do not parse or do not verify."""

    reason = "CORRUPT_DATA"


class WeightsRefused(CorruptData):
    """A version that must not be loaded: wrong hash, signature, shape or base model."""

    reason = "WEIGHTS_REFUSED"


class Unauthenticated(TuneloopError):
    """No key, or a wrong one."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(TuneloopError):
    """A key without the right."""

    reason = "PERMISSION_DENIED"


class NotFound(TuneloopError):
    """No such policy, version, completion or feedback."""

    reason = "NOT_FOUND"


class Conflict(TuneloopError):
    """The id exists with other content."""

    reason = "CONFLICT"


class FailedPrecondition(TuneloopError):
    """Right request, wrong state."""

    reason = "FAILED_PRECONDITION"


class CallerRefused(TuneloopError):
    """A service refuses the process that calls: its token or its certificate."""

    reason = "CALLER_REFUSED"


class Overloaded(TuneloopError):
    """A queue is full; try again."""

    reason = "OVERLOADED"


class Unavailable(TuneloopError):
    """A part is down or draining; try again."""

    reason = "UNAVAILABLE"


class SettingsError(TuneloopError):
    """A setting is wrong or unknown; the message names it and the accepted values."""

    reason = "INVALID_SETTING"
