"""Texts of requests to token ids and back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atb_models.errors import RequestError
from atb_models.server.errors import BadRequest, without_paths
from atb_models.server.tokenizing.lanes import Lanes
from atb_models.server.tokenizing.process import TokenizerSource
from atb_models.server.tokenizing.tasks import Task, check_size, decode, encode, encode_chat
from atb_models.text.chat.template import Message
from atb_models.text.tokenizer import Tokenizer

TOKEN_CHARACTERS = 4  # of a token in a text, about


class Texts:
    """most_tokens: what a request can have; raises EngineGone while there is no engine. A text that surely has more is
    refused before it is tokenized.

    All methods raise BadRequest for what the tokenizer cannot take, with `field`: where it stands in the body.
    """

    def __init__(self, tokenizer: Tokenizer | None, source: TokenizerSource, most_tokens: Callable[[], int]) -> None:
        self._tokenizer, self._most_tokens, self._folder = tokenizer, most_tokens, source.folder
        self._lanes = None if tokenizer is None else Lanes(tokenizer, source)
        if tokenizer is not None:
            tokenizer.least_tokens(0)  # looks through the vocabulary once, now rather than in a request

    async def encode(
        self, text: str, field: str, *, add_special_tokens: bool = True, is_cut: bool = False
    ) -> list[int]:
        """Token ids of a text. is_cut: only a part of them will be used, so any number may be."""
        most = None if is_cut else self._most_tokens()
        if self._tokenizer is not None:
            with _named(field, self._folder):
                check_size(self._tokenizer, text, most)  # here already, rather than send it to a process
        ids: list[int] = await self._run(field, len(text), encode, text, add_special_tokens)
        return ids

    async def encode_all(self, texts: Sequence[str], field: str, *, add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of each text. Others are served in between."""
        found = []
        for place, text in enumerate(texts):
            name = field if len(texts) == 1 else f"{field}.{place}"
            found.append(await self.encode(text, name, add_special_tokens=add_special_tokens))
            await asyncio.sleep(0)
        return found

    async def encode_chat(self, messages: Sequence[Message], field: str, *, add_generation_prompt: bool) -> list[int]:
        """Token ids of a conversation, up to the start of the assistant's turn."""
        size = sum(len(str(message.get("content", ""))) for message in messages)
        ids: list[int] = await self._run(
            field, size, encode_chat, messages, add_generation_prompt, self._most_tokens()
        )
        return ids

    async def decode(self, token_ids: Sequence[int], field: str, *, skip_special_tokens: bool = True) -> str:
        """The text of a client's token ids."""
        size = TOKEN_CHARACTERS * len(token_ids)
        text: str = await self._run(field, size, decode, token_ids, skip_special_tokens)
        return text

    def answer(self, token_ids: Sequence[int]) -> str:
        """The text of an answer's token ids, special ones left out; "" without a tokenizer."""
        return "" if self._tokenizer is None else self._tokenizer.decode(token_ids)

    def close(self) -> None:
        """End what runs."""
        if self._lanes is not None:
            self._lanes.close()

    async def _run(self, field: str, size: int, task: Task, *args: Any) -> Any:
        if self._lanes is None:
            raise BadRequest(f"{field}: this checkpoint has no tokenizer files; give token ids instead of text", field)
        with _named(field, self._folder):
            return await self._lanes.run(size, task, *args)


@contextmanager
def _named(field: str, folder: Path) -> Iterator[None]:
    """What the library refuses, told with the field's name and without the checkpoint's folder."""
    try:
        yield
    except RequestError as error:
        raise BadRequest(f"{field}: {without_paths(str(error), folder)}", field) from None
