"""What a client is told when a request is not answered; each kind has its HTTP status."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


class ServiceError(Exception):
    """Base. status: of HTTP. kind: the `type` of OpenAI's error object. retry_after: seconds, where that may help."""

    status = 500
    kind = "internal_error"
    retry_after: int | None = None


class BadRequest(ServiceError):
    """The body says something that cannot be done."""

    status, kind = 400, "invalid_request_error"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Invalid(BadRequest):
    """A field that is not known, or that has a value we do not take."""

    status = 422


class Unservable(BadRequest):
    """The engine can never run this request."""


class NotFound(ServiceError):
    """No such model."""

    status, kind = 404, "not_found_error"


class Busy(ServiceError):
    """The queue is full."""

    status, kind = 429, "rate_limit_error"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TimedOut(ServiceError):
    """The answer took longer than the service allows."""

    status, kind = 504, "timeout_error"


class EngineGone(ServiceError):
    """There is no engine: it loads, drains or has died."""

    status, kind = 503, "service_unavailable"


def invalid(problems: Sequence[dict[str, Any]]) -> BadRequest:
    """What pydantic says is wrong with a body, naming the field; all it tried, where a field has several forms."""
    first = problems[0]
    if first["type"] == "json_invalid":
        return BadRequest(f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
    start = _place(first)
    place = max((_place(problem) for problem in problems if _place(problem)[: len(start)] == start), key=_depth)
    whys = dict.fromkeys(_why(problem) for problem in problems if _place(problem) == place)
    field = ".".join(map(str, place))
    said = UNSUPPORTED if UNSUPPORTED in whys else ", or ".join(whys)
    return Invalid(f"{field or 'the body'}: {said}", field or None)


def form_tag(name: str) -> str:
    """The tag of a body that is one of several forms; messages leave it out. No field's name has a colon."""
    return f"form:{name}"


def _place(problem: dict[str, Any]) -> tuple[str | int, ...]:
    """Beside fields and places in lists, pydantic names the form that it tried."""
    return tuple(p for p in problem["loc"][1:] if isinstance(p, int) or not FORM.fullmatch(p))


def _depth(place: tuple[str | int, ...]) -> tuple[int, list[int]]:
    """Of several forms the one is meant which fits up to the furthest place."""
    return len(place), [p for p in place if isinstance(p, int)]


def _why(problem: dict[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return "is not known here"
    is_unsupported = problem["type"] == "none_required" or problem.get("ctx", {}).get("max_length") == 0
    return UNSUPPORTED if is_unsupported else str(problem["msg"])


UNSUPPORTED = "is not supported"  # of a field that is taken at rest only


# What stands among a problem's places and is none: the name of a type that pydantic tried, or the tag of a form.
FORM = re.compile(r"str|int|float|bool|dict|list|constrained-\w+|\w+\[.*\]|function-.*|form:\w+")
