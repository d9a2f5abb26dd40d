"""OpenAI's list of models, which has one entry here."""

from __future__ import annotations

from time import time
from typing import Literal

from fastapi import APIRouter
from starlette.responses import Response
from typing_extensions import TypedDict

from atb_models.server.api.common import Here, OpenAIError, check_model, responses
from atb_models.server.replies import Reply
from atb_models.server.service import Service

router = APIRouter(tags=["OpenAI"])
STARTED = int(time())


class Model(TypedDict):
    """max_model_len: tokens of prompt and answer together, as in vLLM."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[Model]


def _model(service: Service) -> Model:
    return Model(
        id=service.settings.model_name,
        object="model",
        created=STARTED,
        owned_by="atb_models",
        max_model_len=service.facts.max_seq_len,
    )


@router.get("/v1/models", responses=responses(ModelList, error=OpenAIError))
async def models(service: Here) -> Response:
    """The model of this service."""
    return Reply(ModelList(object="list", data=[_model(service)]))


@router.get("/v1/models/{model:path}", responses=responses(Model, error=OpenAIError))
async def model(model: str, service: Here) -> Response:
    """This model, if it is the service's."""
    check_model(service, model)
    return Reply(_model(service))
