"""A job hears everything its requests are told, however it falls together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from atb_models.sampling_params import SamplingParams
from atb_models.server import stream as stream_module
from atb_models.server.engine_client import Ticket
from atb_models.server.errors import Unservable
from atb_models.server.job import Job
from atb_models.server.messages import Piece


class FakeClient:
    """Takes requests and gives them up; the test plays the engine."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self.given_up: list[Ticket] = []

    def submit(self, prompt: list[int], params: SamplingParams, *, stream: bool, news: asyncio.Event) -> Ticket:
        self.tickets.append(Ticket(len(self.tickets), news))
        return self.tickets[-1]

    def give_up(self, ticket: Ticket) -> None:
        self.given_up.append(ticket)


def job_of(client: Any, timeout_s: float = 5.0) -> Job:
    return Job(client, [[1]], [SamplingParams()], stream=True, timeout_s=timeout_s, on_end=lambda job, error: None)


def test_an_answer_that_comes_with_its_acceptance_is_heard() -> None:
    async def play() -> list[str]:
        client = FakeClient()
        with job_of(client) as job:
            waiting = asyncio.ensure_future(job.accepted())
            await asyncio.sleep(0)
            client.tickets[0].accept()
            client.tickets[0].push(Piece(0, "all of it", [7], "stop", None, None, {}))
            await waiting
            return [news.text async for news in job.news()]

    assert asyncio.run(asyncio.wait_for(play(), 2)) == ["all of it"]


def test_a_refusal_raises_and_gives_the_request_up() -> None:
    client = FakeClient()

    async def play() -> None:
        with job_of(client) as job:
            client.tickets[0].fail(Unservable("too long"))
            await job.accepted()

    with pytest.raises(Unservable, match="too long"):
        asyncio.run(asyncio.wait_for(play(), 2))
    assert client.given_up == client.tickets


def test_a_client_that_does_not_read_is_given_up_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "UNREAD_S", 0.1)
    client = FakeClient()

    async def events() -> AsyncIterator[bytes]:
        yield b"data: 1"

    async def forever(*_: Any) -> Any:
        await asyncio.Event().wait()

    async def play() -> None:
        job = job_of(client, 0.1)
        client.tickets[0].accept()
        response = await stream_module.streamed(job, events(), lambda error: b"")
        await response({"type": "http"}, forever, forever)

    asyncio.run(asyncio.wait_for(play(), 2))
    assert client.given_up == client.tickets
