"""What the endpoints share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from atb_models.server.errors import NotFound, ServiceError
from atb_models.server.replies import error_body
from atb_models.server.service import Service
from atb_models.server.stream import event


class Body(BaseModel):
    """A request's body, or an object in it. Unknown fields are refused by name unless they are null, which counts as
    left out. Numbers may not be strings or infinite. 4.0 is a whole number, as in JSON Schema."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={"additionalProperties": {"type": "null"}},
    )

    @model_validator(mode="before")
    @classmethod
    def _asked(cls, data: Any) -> Any:
        """The fields that are not null. Very many fields are refused: reporting each would hold up the other clients.

        For the items of a list `fail_fast` does the same.
        """
        if not isinstance(data, dict):
            return data
        if len(data) > MAX_FIELDS:
            raise PydanticCustomError("fields", "has {count} fields, far more than are known", {"count": len(data)})
        return {name: _whole(value) for name, value in data.items() if value is not None}


def _whole(value: Any, depth: int = 2) -> Any:
    """A value with 4 in place of 4.0, in lists and lists of lists too; what takes fractions takes whole numbers."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, list) and depth and not {float, list}.isdisjoint(map(type, value)):
        return [_whole(one, depth - 1) for one in value]
    return value


MAX_FIELDS = 256
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


async def _service_of(request: Request) -> Service:
    """Async, because FastAPI would start a thread for each request otherwise."""
    service: Service = request.app.state.service
    return service


# The service behind an endpoint: `async def endpoint(service: Here)`.
Here = Annotated[Service, Depends(_service_of)]


def check_model(service: Service, name: str | None) -> None:
    """Raises NotFound for any model but this service's."""
    if name is not None and name != service.settings.model_name:
        raise NotFound(f"there is no model {name!r} here; this service has {service.settings.model_name!r}")


def failure_event(path: str) -> Callable[[ServiceError], bytes]:
    """What makes the last event of a stream that fails, in the form of this path's errors."""
    return lambda error: event(error_body(path, error))


class PlainError(TypedDict):
    """An error as TGI and MindIE have it."""

    error: str
    error_type: str


class OpenAIErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: int


class OpenAIError(TypedDict):
    """An error as OpenAI has it."""

    error: OpenAIErrorDetail


ERRORS = {
    400: "The request can never be served, or is no JSON",
    401: "No key, or a wrong one",
    404: "No such model",
    408: "The body did not arrive in time",
    413: "The body is too large",
    422: "A field is unknown or has a value that is not accepted; the message names it",
    429: "The queue is full; Retry-After says when to try again",
    503: "The model is loading, the service is ending, or its engine has ended",
    504: "The answer took longer than the service, or the request, allows",
}

Responses = dict[int | str, dict[str, Any]]


def responses(reply: Any, *streams: str, error: Any = PlainError) -> Responses:
    """The responses of an endpoint, for the OpenAPI document.

    reply: None if it only streams. streams: media types of its streamed answers.
    """
    good: dict[str, Any] = {"description": "The answer"}
    if reply is not None:
        good["model"] = reply
    if streams:
        good["content"] = {kind: {"schema": {"description": "the answer, streamed"}} for kind in streams}
    return {200: good, **{status: {"description": text, "model": error} for status, text in ERRORS.items()}}


EVENTS = "text/event-stream"
