"""TGI: POST /generate_stream, GET /info, and the answers to its form of POST / and /generate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response
from typing_extensions import NotRequired, TypedDict

from atb_models import __version__
from atb_models.sampling_params import SamplingParams
from atb_models.server.api.common import EVENTS, Body, Here, failure_event, responses
from atb_models.server.api.logprobs import most_probable
from atb_models.server.api.sampling import MAX_STOPS, Count, Nothing, On
from atb_models.server.api.tgi_fields import (
    CommonParameters,
    EndReason,
    PrefillToken,
    Token,
    end_reason,
    prefill,
    token,
)
from atb_models.server.job import Answer, Job, News
from atb_models.server.replies import Reply
from atb_models.server.service import Service
from atb_models.server.stream import event, streamed, whole

router = APIRouter(tags=["TGI"])


class TgiParameters(CommonParameters):
    """truncate: number of the prompt's last tokens to use. top_n_tokens: alternatives, as `top_tokens` in details."""

    truncate: Count | None = None
    return_full_text: bool | None = None
    decoder_input_details: bool | None = None
    top_n_tokens: Annotated[int, Field(ge=0, le=20)] | None = None
    grammar: Nothing = None
    adapter_id: Nothing = None

    @property
    def has_details(self) -> bool:
        return bool(self.details or self.decoder_input_details or self.top_n_tokens)


class StreamBody(Body):
    inputs: str
    parameters: TgiParameters = Field(default_factory=TgiParameters)
    stream: On = None


class TgiBody(StreamBody):
    stream: bool | None = None


class TgiDetails(TypedDict):
    finish_reason: EndReason
    generated_tokens: int
    prompt_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: NotRequired[list[list[Token]]]


class Generated(TypedDict):
    generated_text: str
    details: NotRequired[TgiDetails]


async def generate(
    request: Request, body: StreamBody, service: Service, *, stream: bool, as_list: bool = False
) -> Response:
    """Answer TGI's body. as_list: in a list, as TGI does at POST /."""
    p = body.parameters
    ids = await service.texts.encode(body.inputs, "inputs", is_cut=p.truncate is not None)
    ids = ids if p.truncate is None else ids[-p.truncate :]
    params = p.params(
        logprobs=(p.top_n_tokens or 0) if stream or p.has_details else None,
        prompt_logprobs=0 if p.decoder_input_details and not stream else None,
    )
    job = service.job([ids], params, stream=stream, field="inputs")
    if stream:
        return await streamed(job, _events(job, body, params, service), failure_event(request.url.path))
    (answer,) = await whole(request, job)
    reply = Generated(generated_text=(body.inputs if p.return_full_text else "") + answer.text)
    if p.has_details:
        reply["details"] = _details(service, answer, p, params)
    return Reply([reply] if as_list else reply)


def _details(service: Service, answer: Answer, p: TgiParameters, params: SamplingParams) -> TgiDetails:
    pairs = list(zip(answer.token_ids, answer.logprobs, strict=True))
    details = TgiDetails(
        finish_reason=end_reason(service, answer, params),
        generated_tokens=len(pairs),
        prompt_tokens=len(answer.prompt_token_ids),
        seed=p.seed,
        prefill=prefill(service, answer),
        tokens=[token(service, token_id, known[token_id]) for token_id, known in pairs],
    )
    if p.top_n_tokens:
        details["top_tokens"] = [_tops(service, known, p.top_n_tokens) for _, known in pairs]
    return details


def _tops(service: Service, known: dict[int, float], count: int) -> list[Token]:
    return [token(service, *top) for top in most_probable(known, count)]


async def _events(job: Job, body: StreamBody, params: SamplingParams, service: Service) -> AsyncIterator[bytes]:
    """An event for each token. If several arrive at once, the last one has their text, so no character is split."""
    index = 0
    async for news in job.news():
        data = b""
        for place in range(len(news.token_ids)):
            index += 1
            last = place == len(news.token_ids) - 1
            data += event(_event(service, news, place, index, body, params, last=last))
        yield data


def _event(
    service: Service, news: News, place: int, index: int, body: StreamBody, params: SamplingParams, *, last: bool
) -> dict[str, Any]:
    answer, p, token_id, known = news.answer, body.parameters, news.token_ids[place], news.logprobs[place]
    shown: dict[str, Any] = {
        "index": index,
        "token": token(service, token_id, known[token_id], news.text if last else ""),
        "generated_text": None,
        "details": None,
    }
    if p.top_n_tokens:
        shown["top_tokens"] = _tops(service, known, p.top_n_tokens)
    if last and answer.finish_reason is not None:
        shown["generated_text"] = (body.inputs if p.return_full_text else "") + answer.text
        shown["details"] = {
            "finish_reason": end_reason(service, answer, params),
            "generated_tokens": len(answer.token_ids),
            "input_length": len(answer.prompt_token_ids),
            "seed": p.seed,
        }
    return shown


@router.post("/generate_stream", responses=responses(None, EVENTS))
async def generate_stream(request: Request, body: StreamBody, service: Here) -> Response:
    """An event for each token; the last one has the whole text."""
    return await generate(request, body, service, stream=True)


class Info(TypedDict):
    """model_quantization: the method that quantised the weights; null: floats.

    max_total_tokens: tokens of prompt and answer together.
    """

    model_id: str
    model_sha: None
    model_dtype: str
    model_quantization: str | None
    model_device_type: str
    model_pipeline_tag: str
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    version: str
    docker_label: None


@router.get("/info", responses=responses(Info))
async def info(service: Here) -> Response:
    """The model and the limits of this service."""
    facts = service.facts
    return Reply(
        Info(
            model_id=service.settings.model_name,
            model_sha=None,
            model_dtype=facts.dtype,
            model_quantization=facts.quantization,
            model_device_type=facts.device,
            model_pipeline_tag="text-generation",
            max_concurrent_requests=facts.max_batch_size,
            max_best_of=1,
            max_stop_sequences=MAX_STOPS,
            max_input_tokens=facts.max_seq_len - 1,
            max_total_tokens=facts.max_seq_len,
            version=__version__,
            docker_label=None,
        )
    )
