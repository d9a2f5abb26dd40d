"""The answers to vLLM's form of POST /generate."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from atb_models.server.api.common import check_model
from atb_models.server.api.sampling import Choices, Count, Nothing, Sampling
from atb_models.server.errors import BadRequest, ServiceError
from atb_models.server.job import Job
from atb_models.server.replies import Reply, as_json, error_body
from atb_models.server.service import Service, variants
from atb_models.server.stream import streamed, whole

MAX_TOKENS = 16  # vLLM's default
STREAM = "text/plain"


class VllmBody(Sampling):
    """vLLM's form: the parameters stand beside the prompt."""

    prompt: str
    model: str | None = None
    stream: bool | None = None
    max_tokens: Count | None = None
    n: Choices | None = None
    best_of: Count | None = None
    logprobs: Nothing = None
    prompt_logprobs: Nothing = None


class DetokenizedTexts(TypedDict):
    """The texts, each with the prompt before it."""

    text: list[str]


async def generate(request: Request, body: VllmBody, service: Service) -> Response:
    """With `stream`: after each step JSON with the texts so far, ended by a NUL byte."""
    check_model(service, body.model)
    count = body.n or 1
    if body.best_of not in (None, count):
        raise BadRequest(f"best_of is {body.best_of} and n {count}; only equal ones are supported", "best_of")
    params = body.params(max_tokens=body.max_tokens or MAX_TOKENS)
    ids = await service.texts.encode(body.prompt, "prompt")
    job = service.job([ids] * count, variants(params, count), stream=bool(body.stream), field="prompt")
    if body.stream:
        return await streamed(job, _texts(job, body.prompt), _failed, STREAM)
    await whole(request, job)
    return Reply(_so_far(job, body.prompt))


def _so_far(job: Job, prompt: str) -> DetokenizedTexts:
    return DetokenizedTexts(text=[prompt + answer.text for answer in job.answers])


async def _texts(job: Job, prompt: str) -> AsyncIterator[bytes]:
    async for _ in job.news():
        yield as_json(_so_far(job, prompt)) + b"\0"


def _failed(error: ServiceError) -> bytes:
    return as_json(error_body("/generate", error)) + b"\0"
