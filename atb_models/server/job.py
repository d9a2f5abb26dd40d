"""An HTTP request as the engine sees it: one or several engine requests, and the pieces of their answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType

from atb_models.outputs import FinishReason, TokenLogprobs
from atb_models.sampling_params import SamplingParams
from atb_models.server.engine_client import EngineClient, Ticket
from atb_models.server.errors import TimedOut, Unservable
from atb_models.server.messages import Piece


@dataclass
class Answer:
    """A request's answer so far; complete once `finish_reason` is set. Fields as in RequestOutput."""

    prompt_token_ids: list[int]
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    first_token_s: float | None = None  # perf_counter at its first piece
    ended_s: float | None = None

    def add(self, pieces: list[Piece]) -> News:
        """Add several pieces; they are returned as one."""
        self.first_token_s = self.first_token_s or perf_counter()
        news = News(self)
        for piece in pieces:
            news.text += piece.text
            news.token_ids += piece.token_ids
            news.logprobs += piece.logprobs or []
            self.prompt_logprobs = self.prompt_logprobs or piece.prompt_logprobs
            self.finish_reason, self.metrics = piece.finish_reason, piece.metrics
        self.text += news.text
        self.token_ids += news.token_ids
        self.logprobs += news.logprobs
        if self.finish_reason is not None:
            self.ended_s = perf_counter()
        return news


@dataclass
class News:
    """What is new in an answer. index: the answer's position among the job's."""

    answer: Answer
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    index: int = 0


class Job:
    """Submits a request for each prompt; leaving `with job:` ends those that still run.

    answers: one for each prompt, in order. timeout_s: until all of them are complete. on_end(job, error): called once,
    when the block is left; error: the exception that left it, or None.
    """

    def __init__(
        self,
        client: EngineClient,
        prompts: Sequence[list[int]],
        params: Sequence[SamplingParams],
        *,
        stream: bool,
        timeout_s: float,
        on_end: Callable[[Job, BaseException | None], None],
        field: str | None = None,
    ) -> None:
        self.answers = [Answer(prompt) for prompt in prompts]
        self.started_s = perf_counter()
        self._client, self._on_end, self._field = client, on_end, field
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._timeout_s, self._deadline = timeout_s, self._loop.time() + timeout_s
        self._timer = self._loop.call_at(self._deadline, self._event.set)
        self._tickets = [
            client.submit(prompt, one, stream=stream, news=self._event)
            for prompt, one in zip(prompts, params, strict=True)
        ]

    @property
    def remaining_s(self) -> float:
        """Seconds until the answers must be complete."""
        return max(0.0, self._deadline - self._loop.time())

    async def accepted(self) -> None:
        """Wait until the engine has queued all. Raises Unservable, EngineGone or TimedOut."""
        while not all(ticket.accepted for ticket in self._tickets):
            await self._wait()
        self._event.set()  # pieces may have come together with the last acceptance, and be the last

    async def news(self) -> AsyncIterator[News]:
        """What is new in the answers, as it arrives; several steps may arrive as one. Raises EngineGone or TimedOut."""
        open_tickets = dict(enumerate(self._tickets))
        while open_tickets:
            await self._wait()
            for index, ticket in list(open_tickets.items()):
                if ticket.ended:
                    del open_tickets[index]
                if pieces := _taken(ticket):
                    news = self.answers[index].add(pieces)
                    news.index = index
                    yield news

    async def whole(self) -> list[Answer]:
        """All answers, once they are complete. Raises Unservable, EngineGone or TimedOut."""
        async for _ in self.news():
            pass
        return self.answers

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        for ticket in self._tickets:
            self._client.give_up(ticket)
        self._on_end(self, error)

    async def _wait(self) -> None:
        """Wait until something has changed since the last call. Raises the error that a request ended with."""
        await self._event.wait()
        self._event.clear()
        if self._loop.time() >= self._deadline:
            raise TimedOut(f"the answer was not complete after {self._timeout_s:g} s")
        for ticket in self._tickets:
            if isinstance(ticket.error, Unservable) and self._field is not None:
                raise Unservable(f"{self._field}: {ticket.error}", self._field)
            if ticket.error is not None:
                raise ticket.error


def _taken(ticket: Ticket) -> list[Piece]:
    pieces, ticket.pieces = ticket.pieces, []
    return pieces
