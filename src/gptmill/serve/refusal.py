"""Errors as clients see them."""

from gptmill.errors import UserError
from gptmill.serve.request import Busy, Overdue

RETRY_SECONDS = 1


class Refused(Exception):
    """A request that gets an error for an answer.

    Args:
        status: of HTTP.
        code, field: what OpenAI's protocol names the error and the faulty field by, or None.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, field: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.field = status, message, code, field


def refusal(error: Exception) -> Refused:
    """What a client is told about an error."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Busy):
        return Refused(503, f"{error}: try again in a moment", "overloaded")
    if isinstance(error, Overdue | TimeoutError):
        return Refused(504, "the request took longer than this server allows", "timeout")
    if isinstance(error, UserError):
        return Refused(400, str(error))
    return Refused(500, f"the model failed: {type(error).__name__}: {error}")


def error_body(path: str, error: Refused) -> dict:
    """An error as the protocol of the path words it."""
    if not path.startswith("/v1/"):
        return {"error": error.message}
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    about = {"message": error.message, "type": kind, "param": error.field, "code": error.code}
    return {"error": about}
