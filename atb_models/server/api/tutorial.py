"""POST / and POST /generate, which take two forms of a body: the one with `inputs` is TGI's.

The one with `prompt` is, at POST /, that of the small FastAPI services in the models' tutorials.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Discriminator, Tag
from starlette.responses import Response
from typing_extensions import TypedDict

from atb_models.sampling_params import SamplingParams
from atb_models.server.api import tgi, vllm
from atb_models.server.api.common import EVENTS, Body, Here, responses
from atb_models.server.api.sampling import Count, Nothing
from atb_models.server.api.tgi import Generated, TgiBody
from atb_models.server.api.vllm import DetokenizedTexts, VllmBody
from atb_models.server.errors import form_tag
from atb_models.server.replies import Reply
from atb_models.server.service import Service
from atb_models.server.stream import whole

router = APIRouter()


class TutorialBody(Body):
    """max_length: most new tokens; without it generation_config's number, else as many as fit."""

    prompt: str
    max_length: Count | None = None
    history: Nothing = None


class TutorialReply(TypedDict):
    """time: local time of the answer, such as 2024-01-31 12:34:56."""

    response: str
    status: int
    time: str


def _form(body: Any) -> str | None:
    """The form of a body; None for neither or both."""
    forms = [name for name in ("prompt", "inputs") if isinstance(body, dict) and body.get(name) is not None]
    return form_tag(forms[0]) if len(forms) == 1 else None


_BY_FORM = Discriminator(
    _form, custom_error_type="form", custom_error_message="must have either prompt or inputs, and not both"
)
_PROMPT, _INPUTS = Tag(form_tag("prompt")), Tag(form_tag("inputs"))
RootBody = Annotated[Annotated[TutorialBody, _PROMPT] | Annotated[TgiBody, _INPUTS], _BY_FORM]
GenerateBody = Annotated[Annotated[VllmBody, _PROMPT] | Annotated[TgiBody, _INPUTS], _BY_FORM]


@router.post("/", tags=["tutorial", "TGI"], responses=responses(TutorialReply | list[Generated], EVENTS))
async def root(request: Request, body: RootBody, service: Here) -> Response:
    """With `prompt`: a user's turn of a chat, answered as in the tutorials. With `inputs`: TGI's form."""
    if isinstance(body, TgiBody):
        return await tgi.generate(request, body, service, stream=bool(body.stream), as_list=True)
    return await _answer(request, body, service)


@router.post("/generate", tags=["TGI", "vLLM"], responses=responses(Generated | DetokenizedTexts, EVENTS, vllm.STREAM))
async def generate(request: Request, body: GenerateBody, service: Here) -> Response:
    """With `inputs`: TGI's form. With `prompt`: vLLM's."""
    if isinstance(body, TgiBody):
        return await tgi.generate(request, body, service, stream=bool(body.stream))
    return await vllm.generate(request, body, service)


async def _answer(request: Request, body: TutorialBody, service: Service) -> Response:
    messages = [{"role": "user", "content": body.prompt}]
    ids = await service.texts.encode_chat(messages, "prompt", add_generation_prompt=True)
    job = service.job([ids], SamplingParams(max_tokens=body.max_length), stream=False, field="prompt")
    (answer,) = await whole(request, job)
    now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    return Reply(TutorialReply(response=answer.text, status=200, time=now))
