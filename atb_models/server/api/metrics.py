"""/metrics in Prometheus' format, and MindIE's short form of it in JSON."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, HTTPException
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from atb_models import env
from atb_models.server.api.common import Here
from atb_models.server.replies import Reply
from atb_models.server.service import Service

router = APIRouter(tags=["metrics"])


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: Here) -> Response:
    """All series, each with the label model_name."""
    _check_shown()
    return Response(service.metrics.text(len(asyncio.all_tasks())), media_type=CONTENT_TYPE_LATEST)


@router.get("/metrics-json")
async def metrics_json(service: Here) -> Response:
    """Exponential means in milliseconds, and current counts; as strings, as MindIE has them."""
    _check_shown()
    return Reply({name: str(round(value, 3)) for name, value in _summary(service).items()})


def _summary(service: Service) -> dict[str, float]:
    load = service.client.load
    return {
        "TTFT": service.metrics.mean_first_token_s * 1e3,
        "TBT": service.metrics.mean_token_s * 1e3,
        "waitingInferRequestNum": load.waiting,
        "processingInferRequestNum": load.running,
        "remainBlocks": load.free_blocks,
    }


def _check_shown() -> None:
    if not env.get("MIES_SERVICE_MONITOR_MODE"):
        raise HTTPException(404, "MIES_SERVICE_MONITOR_MODE=0 has turned the metrics off")
