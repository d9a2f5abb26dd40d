"""The errors that a client can get, each with its HTTP status."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class ServiceError(Exception):
    """Base class. status: of HTTP. kind: `type` in OpenAI's error object. retry_after: seconds, if a retry may help."""

    status = 500
    kind = "internal_error"
    retry_after: int | None = None


class BadRequest(ServiceError):
    """The body asks for something that cannot be done."""

    status, kind = 400, "invalid_request_error"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Invalid(BadRequest):
    """An unknown field, or a value that is not accepted."""

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


class Broken(ServiceError):
    """A fault of ours: what it was is in the log, not in the reply."""

    def __init__(self) -> None:
        super().__init__("internal error; the log of the service has more")


class ModelFailed(ServiceError):
    """The model cannot go on with this request; others run."""

    status = 500


class TimedOut(ServiceError):
    """The answer took longer than the service allows."""

    status, kind = 504, "timeout_error"


class EngineGone(ServiceError):
    """No engine takes requests: it is loading, ending or dead."""

    status, kind = 503, "service_unavailable"


def without_paths(text: str, *folders: Path) -> str:
    """A message of the library as clients may read it: of a path of this machine only the last part is left.

    folders: whose paths may have blanks in them.
    """
    for folder in folders:
        for path in (folder, folder.absolute(), folder.resolve()):
            text = text.replace(f"{path}/", "").replace(str(path), path.name) if path.is_absolute() else text
    return ABSOLUTE.sub(r"\1", text)


def invalid(problems: Sequence[dict[str, Any]]) -> BadRequest:
    """The error for a body that pydantic refuses. It names the field, and every form if a field may have several."""
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
    """The tag of a body's form, if there are several; messages leave it out. No field name contains a colon."""
    return f"form:{name}"


def _place(problem: dict[str, Any]) -> tuple[str | int, ...]:
    """The path of fields and list indices. pydantic puts the forms that it tried between them; they are left out.

    An unknown field, which is the last part of its path, may have the name of a form.
    """
    parts = problem["loc"][1:]
    known = parts[:-1] if problem["type"] == "extra_forbidden" else parts
    return (*(p for p in known if isinstance(p, int) or not FORM.fullmatch(p)), *parts[len(known) :])


def _depth(place: tuple[str | int, ...]) -> tuple[int, list[int]]:
    """Sort key: of several forms, the client meant the one that fits up to the deepest place."""
    return len(place), [p for p in place if isinstance(p, int)]


def _why(problem: dict[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return "is not known here"
    return str(problem["msg"])


UNSUPPORTED = "is not supported"  # of a field that is accepted only with the value that changes nothing


# A path of several parts on this machine. It does not go on with a word, as "and/or" and "http://host" would.
ABSOLUTE = re.compile(r"""(?<![\w.:/])/(?:[^\s/'",;:()<>]+/)+([^\s/'",;:()<>]*)""")

# Parts of a problem's path that are no places: the name of a type that pydantic tried, or the tag of a form.
FORM = re.compile(r"str|int|float|bool|dict|list|constrained-\w+|\w+\[.*\]|function-.*|form:\w+")
