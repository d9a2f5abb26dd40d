"""The FastAPI application: its endpoints, and the reply to each kind of error."""

from __future__ import annotations

import logging
from importlib import import_module
from time import perf_counter
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atb_models import __version__
from atb_models.errors import AtbError
from atb_models.server.errors import BadRequest, Broken, Invalid, ServiceError, invalid, without_paths
from atb_models.server.http.access import Access
from atb_models.server.middleware import LimitBody, RequireKey
from atb_models.server.replies import error_reply
from atb_models.server.service import Service

logger = logging.getLogger(__name__)

# Modules of api/; each has a `router`.
ENDPOINTS = (
    "health", "metrics", "openai.chat", "openai.completions", "openai.models", "tutorial", "tgi", "mindie", "triton",
    "tokens", "docs", "page",
)  # fmt: skip


def create_app(service: Service, access: Access) -> FastAPI:
    app = FastAPI(
        title="atb_models",
        version=__version__,
        description="Inference of mixture-of-experts models.",
        docs_url=None,  # FastAPI's own page would load its scripts from another host
        redoc_url=None,
    )
    app.state.service = service
    for name in ENDPOINTS:
        app.include_router(import_module(f"atb_models.server.api.{name}").router)
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(AtbError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _broken)
    app.add_middleware(
        LimitBody,
        max_bytes=access.max_body_bytes,
        timeout_s=access.body_timeout_s,
        share_bytes=access.held_bytes,
    )
    app.add_middleware(RequireKey, keys=access.keys)
    if access.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(access.cors_origins), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(LogRequests)
    return app


REFUSED = "atb_models.refused_field"  # of a request's scope: where in the body it stands
MOST_SHOWN = 200  # characters of it


class LogRequests:
    """Logs a line for each request: method, path, status, time, and the field that was refused. Bodies are not logged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = perf_counter(), 499  # nginx's status for a client that left before an answer

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            status = 500
            raise
        finally:
            path = quote(scope["path"])  # quoted: a line end in it would start a new line of the log
            field = scope.get(REFUSED)
            refused = "" if field is None else f", refused field: {quote(field[:MOST_SHOWN])}"
            logger.info("%s %s %d %.3f s%s", scope["method"], path, status, perf_counter() - started, refused)


async def _service_error(request: Request, error: Any) -> Response:
    request.scope[REFUSED] = getattr(error, "param", None)
    return error_reply(request.url.path, error)


async def _refused(request: Request, error: Any) -> Response:
    """The reply for a value that the library refuses."""
    folder = request.app.state.service.settings.folder
    return await _service_error(request, BadRequest(without_paths(str(error), folder)))


async def _invalid(request: Request, error: Any) -> Response:
    problems = error.errors()
    kind = request.headers.get("content-type", "none")
    if problems[0]["loc"] == ("body",) and "json" not in kind:
        return error_reply(request.url.path, Invalid(f"send the body with Content-Type: application/json, not {kind}"))
    return await _service_error(request, invalid(problems))


async def _http_error(request: Request, error: Any) -> Response:
    other = ServiceError(str(error.detail))
    other.status, other.kind = error.status_code, "invalid_request_error"
    reply = error_reply(request.url.path, other)
    reply.headers.update(error.headers or {})
    return reply


async def _broken(request: Request, error: Any) -> Response:
    """The reply for a fault of the service; details are in the log only."""
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_reply(request.url.path, Broken())
