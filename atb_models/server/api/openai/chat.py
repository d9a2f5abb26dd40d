"""OpenAI's chats: POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import AfterValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError
from starlette.responses import Response
from typing_extensions import TypedDict

from atb_models.server.api.common import EVENTS, Body, Here, OpenAIError, check_model, failure_event, responses
from atb_models.server.api.logprobs import ChatLogprobs, chat_logprobs
from atb_models.server.api.openai.fields import OpenAIBody, Timings, Usage, head, sums
from atb_models.server.api.sampling import Count, Nothing, Off, On
from atb_models.server.errors import UNSUPPORTED, BadRequest
from atb_models.server.job import Job
from atb_models.server.replies import Reply
from atb_models.server.service import Service, variants
from atb_models.server.stream import event, streamed, whole

router = APIRouter(tags=["OpenAI"])
PATH = "/v1/chat/completions"


class TextPart(Body):
    """A part of a message; only text is supported."""

    type: Literal["text"]
    text: str


def _said(content: Any, info: ValidationInfo) -> Any:
    """Only an answer that comes back may be empty: OpenAI's has no content where it refuses or calls a tool."""
    if content is None and info.data.get("role") != "assistant":
        raise PydanticCustomError("missing", "Field required")
    return content


Content = str | Annotated[list[TextPart], Field(fail_fast=True)] | None


class Message(Body):
    """A turn. The fields beside role and content are those of a reply's message, which clients send back."""

    role: str
    content: Annotated[Content, AfterValidator(_said), Field(validate_default=True)] = None
    name: str | None = None
    refusal: Nothing = None
    annotations: Nothing = None
    audio: Nothing = None
    function_call: Nothing = None
    tool_calls: Nothing = None
    tool_call_id: Nothing = None
    reasoning: Nothing = None
    reasoning_content: Nothing = None
    prefix: Off = None
    partial: Off = None

    def plain(self) -> dict[str, Any]:
        """The message in the chat template's form."""
        content: Any = self.content or ""
        if isinstance(content, list):
            content = [{"type": "text", "text": part.text} for part in content]
        return {"role": self.role, "content": content, **({"name": self.name} if self.name else {})}


def _not_called(tools: Any, info: ValidationInfo) -> Any:
    """Tools that the body itself says shall not be called ask for nothing."""
    choice = info.data.get("tool_choice" if info.field_name == "tools" else "function_call")
    if tools and choice != "none":
        raise PydanticCustomError("unsupported", UNSUPPORTED)
    return tools


Tools = Annotated[list[Any] | dict[str, Any] | str | None, AfterValidator(_not_called)]
Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]


class ChatBody(OpenAIBody):
    """As in OpenAI and vLLM. Without a number of tokens: generation_config's, else as many as fit."""

    messages: Messages
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_generation_prompt: bool | None = None
    tool_choice: Literal["none", "auto"] | None = None
    tools: Tools = None
    function_call: Literal["none", "auto"] | None = None
    functions: Tools = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    chat_template_kwargs: Nothing = None
    documents: Nothing = None
    include_reasoning: On = None
    continue_final_message: Off = None
    add_special_tokens: Off = None

    @property
    def limit(self) -> int | None:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise BadRequest(
                f"max_tokens is {self.max_tokens} and max_completion_tokens {self.max_completion_tokens}; give one",
                "max_tokens",
            )
        return self.max_completion_tokens or self.max_tokens

    @property
    def tops(self) -> int | None:
        """SamplingParams' logprobs."""
        if self.top_logprobs and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs", "top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class ReplyMessage(TypedDict):
    role: Literal["assistant"]
    content: str


class ChatChoice(TypedDict):
    index: int
    message: ReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatReply(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings


@router.post(PATH, responses=responses(ChatReply, EVENTS, error=OpenAIError))
async def chat(request: Request, body: ChatBody, service: Here) -> Response:
    """Answer a conversation. With `stream`: chunks as events, then [DONE]."""
    check_model(service, body.model)
    count = body.count
    params = body.params(max_tokens=body.limit, logprobs=body.tops)
    messages = [message.plain() for message in body.messages]
    prompt = await service.texts.encode_chat(
        messages, "messages", add_generation_prompt=body.add_generation_prompt is not False
    )
    job = service.job([prompt] * count, variants(params, count), stream=bool(body.stream), field="messages")
    name = service.settings.model_name
    if body.stream:
        return await streamed(job, _chunks(job, body, service), failure_event(PATH))
    answers = await whole(request, job)
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text},
            "logprobs": chat_logprobs(service.words, answer.token_ids, answer.logprobs, body.tops),
            "finish_reason": answer.finish_reason,
        }
        for index, answer in enumerate(answers)
    ]
    return Reply(head("chat.completion", "chatcmpl", name) | {"choices": choices} | sums(answers, count))


async def _chunks(job: Job, body: ChatBody, service: Service) -> AsyncIterator[bytes]:
    """For each choice its role, its text as it arrives, and why it ended; then the usage, if wanted."""
    base = head("chat.completion.chunk", "chatcmpl", service.settings.model_name)
    if body.wants_usage:
        base["usage"] = None

    def chunk(index: int, delta: dict[str, str], logprobs: Any = None, reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event(base | {"choices": [choice]})

    for index in range(body.count):
        yield chunk(index, {"role": "assistant", "content": ""})
    async for news in job.news():
        logprobs = chat_logprobs(service.words, news.token_ids, news.logprobs, body.tops)
        if news.text or logprobs is not None:
            yield chunk(news.index, {"content": news.text}, logprobs)
        if news.answer.finish_reason is not None:
            yield chunk(news.index, {}, None, news.answer.finish_reason)
    if body.wants_usage:
        yield event(base | {"choices": []} | sums(job.answers, body.count))
    yield b"data: [DONE]\n\n"
