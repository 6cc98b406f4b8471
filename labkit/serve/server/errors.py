"""Every refusal and failure in the one shape that OpenAI's clients understand."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
MOST_WORDS = 600


class ApiError(Exception):
    """A request that is not answered, and why.

    Args:
        status: of HTTP.
        message: for people: what was given, what was expected, what to do.
        param: the part of the request at fault.
        code: for programs.
        headers: more of them, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.message = shortened(message)
        self.headers = dict(headers or {})

    def body(self) -> dict[str, object]:
        """The error as a JSON object."""
        kind = TYPES.get(self.status, "invalid_request_error")
        param = None if self.param is None else shortened(self.param, 100)
        return {"error": {"message": self.message, "type": kind, "param": param, "code": self.code}}

    def response(self) -> Response:
        """The error as an answer."""
        return JsonResponse(self.body(), self.status, self.headers)


def shortened(words: str, most: int = MOST_WORDS) -> str:
    """Words that fit into a message and can be encoded, whatever a client put into them."""
    words = words if len(words) <= most else f"{words[: most - 1]}…"
    return words.encode("utf-8", "replace").decode("utf-8")


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The request itself is at fault (400)."""
    return ApiError(400, message, param=param, code=code)


def full(message: str, retry_seconds: int) -> ApiError:
    """There is no room just now (429)."""
    return ApiError(429, message, code="server_full", headers={"Retry-After": str(retry_seconds)})


def unavailable(message: str, code: str, retry_seconds: int) -> ApiError:
    """Nothing is accepted just now (503)."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(retry_seconds)})


class JsonResponse(Response):
    """An answer as JSON, where NaN is an error and letters stay letters."""

    media_type = "application/json"

    def __init__(self, content: object, status_code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(encoded(content), status_code, dict(headers or {}))


def encoded(content: object) -> bytes:
    """JSON as bytes.

    >>> encoded({"text": "né"}).decode()
    '{"text":"né"}'
    """
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
