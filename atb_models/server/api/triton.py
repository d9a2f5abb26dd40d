"""MindIE's endpoints in the form of Triton's, under /v2."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response
from typing_extensions import NotRequired, TypedDict

from atb_models import __version__
from atb_models.sampling_params import SamplingParams
from atb_models.server.api.common import EVENTS, Body, Here, check_model, failure_event, responses
from atb_models.server.api.mindie import MindieParameters
from atb_models.server.api.tgi_fields import EndReason, end_reason
from atb_models.server.job import Answer, Job
from atb_models.server.replies import Reply
from atb_models.server.service import Service
from atb_models.server.stream import event, streamed, whole

router = APIRouter(prefix="/v2", tags=["MindIE"])


class TritonBody(Body):
    """id: returned with the answer."""

    id: Annotated[str, Field(pattern="^[0-9A-Za-z_-]{0,256}$")] | None = None
    text_input: str
    parameters: MindieParameters = Field(default_factory=MindieParameters)


class TritonDetails(TypedDict):
    """Times in ms. batch_size: requests that ran with this one in its last step."""

    finish_reason: EndReason | None
    generated_tokens: int
    first_token_cost: float | None
    decode_cost: float | None
    batch_size: int
    queue_wait_time: float | None


class TritonReply(TypedDict):
    id: str | None
    model_name: str
    model_version: None
    text_output: str
    details: NotRequired[TritonDetails]


@router.post("/models/{model:path}/generate", responses=responses(TritonReply))
async def generate(request: Request, model: str, body: TritonBody, service: Here) -> Response:
    """Continue a text."""
    job, params = await _job(model, body, service, stream=False)
    (answer,) = await whole(request, job)
    return Reply(_reply(service, answer, answer.text, body, params))


@router.post("/models/{model:path}/generate_stream", responses=responses(None, EVENTS))
async def generate_stream(request: Request, model: str, body: TritonBody, service: Here) -> Response:
    """Continue a text. An event for each step, with the text that it adds."""
    job, params = await _job(model, body, service, stream=True)
    return await streamed(job, _events(job, body, params, service), failure_event(request.url.path))


async def _job(model: str, body: TritonBody, service: Service, *, stream: bool) -> tuple[Job, SamplingParams]:
    check_model(service, model)
    params = body.parameters.params()
    ids = await service.texts.encode(body.text_input, "text_input")
    timeout_s = body.parameters.timeout_s
    return service.job([ids], params, stream=stream, field="text_input", timeout_s=timeout_s), params


async def _events(job: Job, body: TritonBody, params: SamplingParams, service: Service) -> AsyncIterator[bytes]:
    async for news in job.news():
        yield event(_reply(service, news.answer, news.text, body, params))


def _reply(service: Service, answer: Answer, text: str, body: TritonBody, params: SamplingParams) -> TritonReply:
    reply = TritonReply(id=body.id, model_name=service.settings.model_name, model_version=None, text_output=text)
    if body.parameters.details:
        seconds = answer.metrics
        first, total = seconds.get("first_token_s"), seconds.get("total_s")
        ended = answer.finish_reason is not None
        reply["details"] = TritonDetails(
            finish_reason=end_reason(service, answer, params) if ended else None,
            generated_tokens=len(answer.token_ids),
            first_token_cost=_ms(first),
            decode_cost=None if None in (first, total) else _ms((total or 0.0) - (first or 0.0)),
            batch_size=max(1, service.client.load.running),
            queue_wait_time=_ms(seconds.get("queue_s")),
        )
    return reply


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)


class Server(TypedDict):
    name: str
    version: str
    extensions: list[str]


@router.get("", responses=responses(Server))
async def server(service: Here) -> Response:
    """Name and version of this program."""
    return Reply(Server(name="atb_models", version=__version__, extensions=[]))


class Ready(TypedDict):
    name: str
    ready: bool


@router.get("/models/{model:path}/ready", responses=responses(Ready))
async def ready(model: str, service: Here) -> Response:
    """200 while requests for the model are accepted."""
    check_model(service, model)
    return Reply(Ready(name=model, ready=service.facts is not None))


class Slots(TypedDict):
    """A slot is a request that runs. available_tokens_length: tokens that fit into the free part of the KV cache."""

    total_slots: int
    free_slots: int
    available_tokens_length: int


@router.get("/models/{model:path}/getSlotCount", responses=responses(Slots))
async def slots(model: str, service: Here) -> Response:
    """How many slots and tokens are free."""
    check_model(service, model)
    facts, load = service.facts, service.client.load
    free_blocks = load.free_blocks if load.steps else facts.total_blocks
    return Reply(
        Slots(
            total_slots=facts.max_batch_size,
            free_slots=max(0, facts.max_batch_size - load.running - load.waiting),
            available_tokens_length=free_blocks * facts.block_size,
        )
    )


class TritonModel(TypedDict):
    name: str
    versions: list[str]
    platform: str
    inputs: list[Any]
    outputs: list[Any]


@router.get("/models/{model:path}", responses=responses(TritonModel))
async def about(model: str, service: Here) -> Response:
    """The model, if it is this service's. The last path of this file, because a model's name may contain slashes."""
    check_model(service, model)
    return Reply(TritonModel(name=model, versions=["1"], platform="atb_models", inputs=[], outputs=[]))
