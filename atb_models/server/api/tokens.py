"""Text to token ids and back, as in vLLM: POST /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response
from typing_extensions import NotRequired, TypedDict

from atb_models.server.api.common import Body, Here, TokenId, check_model, responses
from atb_models.server.api.openai.chat import Message
from atb_models.server.api.sampling import Nothing, Off
from atb_models.server.errors import Invalid
from atb_models.server.replies import Reply

router = APIRouter(tags=["vLLM"])


class TokenizeBody(Body):
    """Either prompt, a text, or messages, a conversation.

    add_special_tokens: for a prompt only. add_generation_prompt: no effect on a prompt. Both are true if not given.
    """

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: Off = None
    chat_template_kwargs: Nothing = None
    tools: Nothing = None
    return_token_strs: bool | None = None


class Tokens(TypedDict):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: NotRequired[list[str]]


@router.post("/tokenize", responses=responses(Tokens))
async def tokenize(body: TokenizeBody, service: Here) -> Response:
    """The token ids of a text or of a conversation."""
    check_model(service, body.model)
    if body.prompt is not None and not body.messages:
        ids = await service.texts.encode(body.prompt, "prompt", add_special_tokens=body.add_special_tokens is not False)
    elif body.messages and not body.prompt:
        if body.add_special_tokens:
            raise Invalid("add_special_tokens needs prompt: a chat template writes its own", "add_special_tokens")
        messages = [message.plain() for message in body.messages]
        ids = await service.texts.encode_chat(
            messages, "messages", add_generation_prompt=body.add_generation_prompt is not False
        )
    else:
        raise Invalid("must have either prompt or messages, and not both", "prompt")
    reply = Tokens(count=len(ids), max_model_len=service.facts.max_seq_len, tokens=ids)
    if body.return_token_strs:
        reply["token_strs"] = [word.text for word in await service.words.each(ids)]
    return Reply(reply)


class DetokenizeBody(Body):
    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


class Text(TypedDict):
    prompt: str


@router.post("/detokenize", responses=responses(Text))
async def detokenize(body: DetokenizeBody, service: Here) -> Response:
    """The text of token ids, special tokens included."""
    check_model(service, body.model)
    vocabulary = service.facts.vocab_size
    if (highest := max(body.tokens, default=0)) >= vocabulary:
        raise Invalid(f"tokens: there is no token id {highest}; ids go from 0 to {vocabulary - 1}", "tokens")
    return Reply(Text(prompt=await service.texts.decode(body.tokens, "tokens", skip_special_tokens=False)))
