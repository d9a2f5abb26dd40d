"""Replies in JSON, and the two forms of errors: OpenAI's under /v1/, that of TGI and MindIE elsewhere."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from atb_models.server.errors import BadRequest, ServiceError


class Reply(Response):
    """A JSON body, its characters not escaped."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return as_json(content)


def as_json(content: Any) -> bytes:
    """JSON in UTF-8. Half a surrogate pair, which a client may have sent, is escaped. Raises ValueError for NaN."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "backslashreplace")


def error_body(path: str, error: ServiceError) -> dict[str, Any]:
    """The error in the form that clients of this path expect."""
    if path.startswith("/v1/") and path != "/v1/tokenizer":
        param = error.param if isinstance(error, BadRequest) else None
        return {"error": {"message": str(error), "type": error.kind, "param": param, "code": error.status}}
    return {"error": str(error), "error_type": error.kind}


def error_reply(path: str, error: ServiceError) -> Reply:
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    return Reply(error_body(path, error), error.status, headers)
