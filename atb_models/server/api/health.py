"""Whether the service answers: /health, /ready and MindIE's paths for the same."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from atb_models.server.api.common import Here
from atb_models.server.replies import Reply
from atb_models.server.service import Service, State

router = APIRouter(tags=["health"])


ANSWER_S = 10.0  # a step with a long prompt may take this long


@router.get("/health")
async def health(service: Here) -> Response:
    """Asks the engine and its ranks. 200: they answer. 503: they are loading, ending or dead, or do not answer."""
    if service.state is State.READY and not await service.client.answers(ANSWER_S) and service.state is State.READY:
        return Reply({"status": "silent", "detail": f"the engine has not answered for {ANSWER_S:g} s"}, 503)
    return _state(service)


@router.get("/ready")
@router.get("/v2/health/ready")
async def ready(service: Here) -> Response:
    """200 while requests are accepted."""
    return _state(service)


def _state(service: Service) -> Response:
    body: dict[str, Any] = {"status": service.state.value, "detail": service.detail}
    return Reply(body, 200 if service.state is State.READY else 503)


@router.get("/v2/health/live")
async def live(service: Here) -> Response:
    """200 while the process has an engine or is starting one."""
    alive = service.state is not State.DEAD
    return Reply({"status": service.state.value}, 200 if alive else 503)
