"""OpenAI's completions of plain text: POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response
from typing_extensions import TypedDict

from atb_models.server.api.common import EVENTS, Here, Ids, OpenAIError, check_model, failure_event, responses
from atb_models.server.api.logprobs import CompletionLogprobs, TextPlaces, completion_logprobs
from atb_models.server.api.openai.fields import OpenAIBody, Timings, Usage, head, sums
from atb_models.server.api.sampling import Off
from atb_models.server.errors import BadRequest
from atb_models.server.job import Answer, Job, News
from atb_models.server.replies import Reply
from atb_models.server.service import Service, variants
from atb_models.server.stream import event, streamed, whole

router = APIRouter(tags=["OpenAI"])
PATH = "/v1/completions"
MAX_TOKENS = 16  # OpenAI's default

Texts = Annotated[list[str], Field(min_length=1, max_length=1024, fail_fast=True)]


class CompletionBody(OpenAIBody):
    """As in OpenAI and vLLM. prompt: a text, a list of texts, token ids, or a list of token ids.

    max_tokens: 16 if not given; 0 only with `echo`, which returns the prompt, with `logprobs` its log-probabilities.
    """

    prompt: str | Ids | Texts | Annotated[list[Ids], Field(min_length=1, max_length=1024, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | Off = None
    suffix: Literal[""] | None = None
    add_special_tokens: bool | None = None

    @property
    def limit(self) -> int:
        limit = MAX_TOKENS if self.max_tokens is None else self.max_tokens
        if limit == 0 and not self.echo:
            raise BadRequest("max_tokens is 0, which leaves nothing to answer without echo", "max_tokens")
        return limit

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class CompletionReply(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    timings: Timings


@router.post(PATH, responses=responses(CompletionReply, EVENTS, error=OpenAIError))
async def complete(request: Request, body: CompletionBody, service: Here) -> Response:
    """Continue texts: `n` choices for the first prompt, then `n` for the second, and so on."""
    check_model(service, body.model)
    count, limit = body.count, body.limit
    params = body.params(
        max_tokens=max(limit, 1), logprobs=body.logprobs, prompt_logprobs=body.logprobs if body.echo else None
    )
    service.check_count(len(body.prompts) * count, "prompt")
    prompts = await _encoded(body, service)
    service.check_lengths(prompts, "prompt")
    echoes = [await _echo(prompt, service) if body.echo else "" for prompt in body.prompts]
    each = [prompt for prompt in prompts for _ in range(count)]
    job = service.job(each, variants(params, count) * len(prompts), stream=bool(body.stream), field="prompt")
    writers = [_Writer(body, service, answer, echoes[i // count]) for i, answer in enumerate(job.answers)]
    if body.stream:
        return await streamed(job, _chunks(job, body, service, writers), failure_event(PATH))
    answers = await whole(request, job)
    choices = [
        {"index": index, **writer.gain(_all(answer)), "finish_reason": writer.finish_reason}
        for index, (writer, answer) in enumerate(zip(writers, answers, strict=True))
    ]
    base = head("text_completion", "cmpl", service.settings.model_name)
    return Reply(base | {"choices": choices} | sums(answers, count))


async def _chunks(job: Job, body: CompletionBody, service: Service, writers: list[_Writer]) -> AsyncIterator[bytes]:
    base = head("text_completion", "cmpl", service.settings.model_name)
    if body.wants_usage:
        base["usage"] = None
    async for news in job.news():
        writer = writers[news.index]
        ended = news.answer.finish_reason is not None
        gained = writer.gain(news)
        if gained["text"] or gained["logprobs"] is not None or ended:
            reason = writer.finish_reason if ended else None
            yield event(base | {"choices": [{"index": news.index, **gained, "finish_reason": reason}]})
    if body.wants_usage:
        yield event(base | {"choices": []} | sums(job.answers, body.count))
    yield b"data: [DONE]\n\n"


async def _encoded(body: CompletionBody, service: Service) -> list[list[int]]:
    texts = [prompt for prompt in body.prompts if isinstance(prompt, str)]
    encoded = await service.texts.encode_all(texts, "prompt", add_special_tokens=body.add_special_tokens is not False)
    return encoded or [prompt for prompt in body.prompts if not isinstance(prompt, str)]


def _all(answer: Answer) -> News:
    """A complete answer as one piece of news."""
    return News(answer, answer.text, answer.token_ids, answer.logprobs)


async def _echo(prompt: str | list[int], service: Service) -> str:
    return prompt if isinstance(prompt, str) else await service.texts.decode(prompt, "prompt")


class _Writer:
    """The text of one choice and its log-probabilities; with `echo`, those of the prompt before it."""

    def __init__(self, body: CompletionBody, service: Service, answer: Answer, prompt: str) -> None:
        self._body, self._words, self._answer, self._prompt = body, service.words, answer, prompt
        self._places = TextPlaces(service.words)
        self._begun = False

    @property
    def finish_reason(self) -> str | None:
        return "length" if self._body.limit == 0 else self._answer.finish_reason

    def gain(self, news: News) -> dict[str, Any]:
        """`text` and `logprobs` of the news. With max_tokens 0, the token that the engine adds is dropped."""
        answer, text, token_ids, logprobs = self._answer, news.text, news.token_ids, [*news.logprobs]
        if self._body.limit == 0:
            text, token_ids, logprobs = "", [], []
            answer.text, answer.token_ids = "", []
        known: list[Any] = [*logprobs]
        if self._body.echo and not self._begun:
            text = self._prompt + text
            token_ids, known = [*answer.prompt_token_ids, *token_ids], [*(answer.prompt_logprobs or []), *known]
        self._begun = True
        if self._body.logprobs is None:
            return {"text": text, "logprobs": None}
        so_far = self._prompt + answer.text
        tops = self._body.logprobs
        return {
            "text": text,
            "logprobs": completion_logprobs(self._words, self._places, token_ids, known, tops, so_far),
        }
