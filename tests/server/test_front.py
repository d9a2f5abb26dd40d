"""The front's exit status when its engine dies just as it is told to end: in this process, with a made-up engine."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from atb_models.command.parser import typed
from atb_models.engine.config import EngineConfig
from atb_models.server.args import parse_args
from atb_models.server.engine_client import EngineClient
from atb_models.server.front import Front, FrontOptions
from atb_models.server.http.access import Access
from atb_models.server.serve import listener
from atb_models.server.service import Service, Settings


class FakeEngine(EngineClient):
    """Runs until it is told to die."""

    def __init__(self) -> None:
        super().__init__(EngineConfig())
        self.death = asyncio.Event()

    async def run(self, on_ready: Callable[[], None]) -> None:
        await self.death.wait()
        self._fail("rank 1 was killed", 1)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atb_models.server.front.LINGER_S", 0.2)


async def _status(*flags: str, told_first: bool) -> int:
    engine = FakeEngine()
    service = Service(engine, None, Settings("demo", Path()))
    front = Front(service, EngineConfig(), Access(), typed(parse_args(flags), FrontOptions))
    with listener("127.0.0.1", 0) as sock:
        running = asyncio.ensure_future(front.run(sock))
        await asyncio.sleep(0.1)
        if told_first:
            service.open_jobs = 1
            front._on_signal(signal.SIGTERM)
            await asyncio.sleep(0.1)
            engine.death.set()
            await asyncio.sleep(0.1)
            service.open_jobs = 0  # for they have failed
        else:
            engine.death.set()
            await asyncio.sleep(0.1)
            front._on_signal(signal.SIGTERM)
        return await running


@pytest.mark.parametrize("flags", [(), ("--restart",)], ids=str)
def test_an_engine_that_dies_while_requests_end_is_a_failure(
    flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert asyncio.run(asyncio.wait_for(_status(*flags, told_first=True), 5)) == 1
    assert "rank 1 was killed" in capsys.readouterr().err


def test_a_signal_after_the_engine_s_death_does_not_make_it_a_success() -> None:
    assert asyncio.run(asyncio.wait_for(_status(told_first=False), 5)) == 1
