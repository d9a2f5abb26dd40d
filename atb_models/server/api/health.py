"""Whether the service answers: /health, /ready and MindIE's paths for the same."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from atb_models.server.api.common import Here
from atb_models.server.engine_client import EngineClient
from atb_models.server.replies import Reply
from atb_models.server.service import Service, State
from atb_models.wording import counted

router = APIRouter(tags=["health"])


ANSWER_S = 10.0  # for an engine that has nothing to do


@router.get("/health")
async def health(service: Here) -> Response:
    """200: the engine and its ranks answer, or run a step that is not overdue. 503: they are loading, ending or dead,
    do not answer, or their step is overdue."""
    if service.state is State.READY:
        silence = await _silence(service.client)
        if silence is not None and service.state is State.READY:
            return Reply({"status": "silent", "detail": silence}, 503)
    return _state(service)


async def _silence(client: EngineClient) -> str | None:
    """What is wrong with an engine that is loaded; None for one that works."""
    pace = client.pace
    if pace.age_s is None and not await client.answers(ANSWER_S) and pace.age_s is None:
        return f"the engine has not answered for {ANSWER_S:g} s"
    age_s, allowed_s = pace.age_s or 0.0, pace.allowed_s
    if age_s <= allowed_s:
        return None
    return (
        f"the engine's step has taken {age_s:.1f} s; with {counted(pace.prompt_tokens, 'prompt token')} it should take"
        f" {allowed_s:.1f} s at most"
    )


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
