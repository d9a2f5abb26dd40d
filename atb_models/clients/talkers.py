"""What answers a chat: a model in this process, or a server."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from atb_models.clients.http import RemoteServer
from atb_models.sampling_params import SamplingParams

if TYPE_CHECKING:
    from atb_models import LLM

Message = dict[str, str]
Show = Callable[[str], None]


@dataclass
class ChatTurn:
    """The answer of a turn. text: what arrived of it. is_stopped: by Ctrl-C. Numbers of tokens: None if not known."""

    text: str = ""
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    seconds: float = 0.0
    is_stopped: bool = False
    is_cut: bool = False  # it ended at the limit of tokens

    def summary(self) -> str:
        """Such as "12 + 34 tokens, 5.6 tokens/s"."""
        parts = []
        if self.answer_tokens is not None:
            rate = self.answer_tokens / max(self.seconds, 1e-6)
            parts.append(f"{self.prompt_tokens} + {self.answer_tokens} tokens, {rate:.1f} tokens/s")
        if self.is_stopped:
            parts.append("stopped")
        if self.is_cut:
            parts.append("ended at the token limit")
        return ", ".join(parts)


class Talker(Protocol):
    name: str

    def answer(self, messages: Sequence[Message], show: Show) -> ChatTurn:
        """Answer, and call `show` with text as it arrives; Ctrl-C ends the answer. Raises AtbError."""


class LocalTalker:
    """An `LLM` in this process."""

    def __init__(self, llm: LLM, sampling: dict[str, Any]) -> None:
        self.name = llm.config.folder.name if llm.config.model_path else "the embedded toy checkpoint"
        self._llm, self._params = llm, SamplingParams(**sampling)

    def answer(self, messages: Sequence[Message], show: Show) -> ChatTurn:
        reply, started = ChatTurn(), perf_counter()
        with _interrupt_noted() as noted:
            outputs = self._llm.chat([messages], self._params, stream=True)
            for output in outputs:
                show(output.delta)
                reply.text, reply.is_cut = output.text, output.finish_reason == "length"
                reply.prompt_tokens, reply.answer_tokens = len(output.prompt_token_ids), len(output.token_ids)
                output.raise_for_error()
                if noted and output.finish_reason is None:
                    reply.is_stopped = True
                    break
            del outputs  # dropping the iterator aborts a request that still runs
        reply.seconds = perf_counter() - started
        return reply


@contextmanager
def _interrupt_noted() -> Iterator[list[int]]:
    """Within it the first SIGINT is only noted: an exception in a step would leave the other ranks waiting.

    The second raises KeyboardInterrupt, in case a step does not end.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


class RemoteTalker:
    """A server."""

    def __init__(self, server: RemoteServer, model: str, sampling: dict[str, Any]) -> None:
        self.name, self._server = model, server
        self._body = {"model": model, "stream": True, "stream_options": {"include_usage": True}, **sampling}

    def answer(self, messages: Sequence[Message], show: Show) -> ChatTurn:
        reply, started = ChatTurn(), perf_counter()
        try:
            asyncio.run(self._read(messages, show, reply))
        except KeyboardInterrupt:
            reply.is_stopped = True
        reply.seconds = perf_counter() - started
        return reply

    async def _read(self, messages: Sequence[Message], show: Show, reply: ChatTurn) -> None:
        body = self._body | {"messages": list(messages)}
        async with aclosing(self._server.events("/v1/chat/completions", body)) as events:
            async for event in events:
                for choice in event.get("choices", []):
                    text = (choice.get("delta") or {}).get("content") or ""
                    show(text)
                    reply.text += text
                    reply.is_cut = choice.get("finish_reason") == "length"
                if usage := event.get("usage"):
                    reply.prompt_tokens, reply.answer_tokens = usage["prompt_tokens"], usage["completion_tokens"]
