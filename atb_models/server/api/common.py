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
    """A request's body. Unknown fields are refused by name; numbers may not be strings or infinite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, data: Any) -> Any:
        """Refuse bodies with very many fields: reporting each wrong one would hold up the other clients.

        For the items of a list `fail_fast` does the same.
        """
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise PydanticCustomError("fields", "has {count} fields, far more than are known", {"count": len(data)})
        return data


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
