"""MindIE's own endpoints: POST /infer, /infer_token and /v1/tokenizer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from time import perf_counter
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response
from typing_extensions import NotRequired, TypedDict

from atb_models.sampling_params import SamplingParams
from atb_models.server.api.common import EVENTS, Body, Here, Ids, TokenId, failure_event, responses
from atb_models.server.api.sampling import Off
from atb_models.server.api.tgi_fields import CommonParameters, EndReason, end_reason
from atb_models.server.errors import Invalid
from atb_models.server.job import Answer, Job
from atb_models.server.replies import Reply
from atb_models.server.service import Service
from atb_models.server.stream import event, streamed, whole
from atb_models.server.words import Word

router = APIRouter(tags=["MindIE"])

LOWEST_PRIORITY = 5


class MindieParameters(CommonParameters):
    """timeout: seconds for the answer. priority: only 5, the lowest; requests are served in order of arrival."""

    priority: Annotated[int, Field(ge=LOWEST_PRIORITY, le=LOWEST_PRIORITY)] | None = None
    timeout: Annotated[int, Field(ge=1, le=65535)] | None = None
    perf_stat: Off = None

    @property
    def timeout_s(self) -> float:
        return float("inf") if self.timeout is None else float(self.timeout)


class InferTokenBody(Body):
    input_id: Ids
    stream: bool | None = None
    parameters: MindieParameters = Field(default_factory=MindieParameters)


class InferBody(Body):
    """Either inputs, a text, or input_id, its token ids."""

    inputs: str | None = None
    input_id: Annotated[list[TokenId], Field(fail_fast=True)] | None = None
    stream: bool | None = None
    parameters: MindieParameters = Field(default_factory=MindieParameters)


class InferDetails(TypedDict):
    finish_reason: EndReason
    generated_tokens: int
    generated_token_ids: list[int]
    seed: int | None


class Inferred(TypedDict):
    generated_text: str
    details: NotRequired[InferDetails]


@router.post("/infer", responses=responses(Inferred, EVENTS))
async def infer(request: Request, body: InferBody, service: Here) -> Response:
    """Continue a text or token ids."""
    if (not body.input_id and body.inputs is None) or (body.input_id and body.inputs):
        raise Invalid("must have either inputs or input_id, and not both", "inputs")
    if body.input_id:
        return await _infer(request, body.input_id, "input_id", body, service)
    ids = await service.texts.encode(body.inputs or "", "inputs")
    return await _infer(request, ids, "inputs", body, service)


@router.post("/infer_token", responses=responses(Inferred, EVENTS))
async def infer_token(request: Request, body: InferTokenBody, service: Here) -> Response:
    """Continue token ids."""
    return await _infer(request, body.input_id, "input_id", body, service)


async def _infer(
    request: Request, ids: list[int], field: str, body: InferBody | InferTokenBody, service: Service
) -> Response:
    p = body.parameters
    params = p.params()
    job = service.job([ids], params, stream=bool(body.stream), field=field, timeout_s=p.timeout_s)
    if body.stream:
        return await streamed(job, _events(job, p, params, service), failure_event(request.url.path))
    (answer,) = await whole(request, job)
    return Reply(_inferred(service, answer, p, params))


def _inferred(service: Service, answer: Answer, p: MindieParameters, params: SamplingParams) -> Inferred:
    reply = Inferred(generated_text=answer.text)
    if p.details:
        reply["details"] = InferDetails(
            finish_reason=end_reason(service, answer, params),
            generated_tokens=len(answer.token_ids),
            generated_token_ids=answer.token_ids,
            seed=p.seed,
        )
    return reply


async def _events(job: Job, p: MindieParameters, params: SamplingParams, service: Service) -> AsyncIterator[bytes]:
    """An event for the tokens that arrive together, of one step or several, and their time in ms. The last one also has
    the whole text."""
    before_s: float | None = None
    async for news in job.news():
        now_s = perf_counter()
        took_ms = round(1000 * (now_s - (before_s or job.started_s)), 3)
        shown: dict[str, Any] = {
            "prefill_time": took_ms if before_s is None else None,
            "decode_time": None if before_s is None else took_ms,
            "token": {"id": news.token_ids, "text": news.text},
        }
        if news.answer.finish_reason is not None:
            shown |= _inferred(service, news.answer, p, params)
        before_s = now_s
        yield event(shown)


class CountBody(Body):
    inputs: str
    do_decode: bool | None = None


class Counted(TypedDict):
    """tokens: their texts, with do_decode false their ids. A character of several tokens stands there once."""

    token_number: int
    tokens: list[str] | list[int]


@router.post("/v1/tokenizer", responses=responses(Counted))
async def count(body: CountBody, service: Here) -> Response:
    """The tokens of a text, with the model's begin-of-sequence token."""
    ids = await service.texts.encode(body.inputs, "inputs")
    tokens: list[Any] = ids if body.do_decode is False else _texts(await service.words.each(ids))
    return Reply(Counted(token_number=len(ids), tokens=tokens))


def _texts(words: list[Word]) -> list[str]:
    texts: list[str] = []
    split = b""
    for word in words:
        split += word.text.encode() if word.data is None else word.data
        try:
            texts.append(split.decode())
            split = b""
        except UnicodeDecodeError:
            continue
    return texts + ([split.decode(errors="replace")] if split else [])
