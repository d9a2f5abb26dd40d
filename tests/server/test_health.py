"""/health while steps run: 200 for one that is young enough for its size, 503 for one that is overdue."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atb_models import SamplingParams
from atb_models.engine.block_manager import BlockManager
from atb_models.engine.engine import Engine
from atb_models.engine.scheduler import Row, Scheduler
from atb_models.limits import Limits
from atb_models.server import pace as pace_module
from atb_models.server.api import health as health_module
from atb_models.server.channel import Channel, packed
from atb_models.server.engine_client import EngineClient
from atb_models.server.engine_process import EngineLoop
from atb_models.server.messages import Add, Facts, Load, Loaded, Stepped, Stepping
from atb_models.server.pace import FIRST_S, LEAST_S, PATIENCE, REMEMBERED, Pace
from atb_models.server.service import Service, Settings
from tests.fake_runner import FakeRunner
from tests.server.raw import PATH, Stream, children, completion, values, wait_for
from tests.server.running import Running, running


class Clock:
    """In place of the clock and of the engine: steps that take as long as they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pace: Pace) -> None:
        self.now, self.pace, self.steps, self.busy_s = 100.0, pace, 0, 0.0
        monkeypatch.setattr(pace_module, "monotonic", lambda: self.now)

    def load(self, running: int = 1) -> Load:
        return Load(running=running, steps=self.steps, run_s=self.busy_s)

    def step(self, prompt_tokens: int, seconds: float, running: int = 1) -> None:
        if prompt_tokens:
            self.pace.began(prompt_tokens)
        self.now += seconds
        self.steps, self.busy_s = self.steps + 1, self.busy_s + seconds
        self.pace.stepped(self.load(running))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch, Pace())


def test_the_first_step_has_long(clock: Clock) -> None:
    clock.pace.began(5)
    clock.now += 30
    assert clock.pace.age_s == 30 and clock.pace.allowed_s == FIRST_S


def test_a_step_may_take_some_times_what_those_of_its_size_took(clock: Clock) -> None:
    clock.step(2000, 6.0)
    clock.step(1500, 7.0)
    clock.step(0, 0.1)
    clock.pace.began(1024)
    assert clock.pace.allowed_s == PATIENCE * 7.0
    clock.pace.began(200)
    assert clock.pace.allowed_s == PATIENCE * 7.0, "a larger one was measured, which bounds it"
    clock.pace.began(8000)
    assert clock.pace.allowed_s == pytest.approx(PATIENCE * 7.0 * 8000 / 1024), "in proportion"
    clock.step(0, 0.1)
    assert clock.pace.allowed_s == LEAST_S, "a decode is short"


def test_slow_decodes_are_allowed_for(clock: Clock) -> None:
    clock.step(0, 20.0)
    assert clock.pace.allowed_s == PATIENCE * 20.0
    for _ in range(REMEMBERED):
        clock.step(0, 0.1)
    assert clock.pace.allowed_s == LEAST_S, "only the last ones count"


def test_at_rest_no_step_ages(clock: Clock) -> None:
    clock.step(5, 1.0, running=0)
    clock.now += 1000
    assert clock.pace.age_s is None
    clock.pace.stepped(clock.load(0))
    assert clock.pace.age_s is None
    clock.pace.began(5)
    clock.now += 2
    assert clock.pace.age_s == 2


def test_the_engine_announces_steps_with_prompt_tokens() -> None:
    ours, theirs = socket.socketpair()
    limits = Limits(max_batch_size=2, max_prefill_tokens=4, max_seq_len=50, block_size=4)

    def look(rows: list[Row]) -> None:
        if not rows[0].is_prefill:
            ours.shutdown(socket.SHUT_WR)  # the engine ends after this step

    engine = Engine(FakeRunner(16, 4, look), Scheduler(BlockManager(16, 4), limits))
    llm: Any = SimpleNamespace(engine=engine, check=lambda: None)
    with ours, theirs:
        ours.sendall(packed(Add(7, [1, 2, 3, 4, 5, 6], SamplingParams(max_tokens=3), False)))
        EngineLoop(llm, Channel(theirs)).run()
        heard = Channel(ours).take(0)
    kinds = [message for message in heard if isinstance(message, Stepping | Stepped)]
    assert [getattr(message, "prompt_tokens", None) for message in kinds][:5] == [4, None, 2, None, None]


class Silent(EngineClient):
    """A loaded engine that says nothing."""

    def __init__(self, answer: bool) -> None:
        super().__init__({})
        self._hear(Loaded(Facts("fp16", None, "cpu", 1, 10, 100, 1, 16, 10)))
        self.answer = answer

    async def answers(self, wait_s: float) -> bool:
        return self.answer


def _health(client: EngineClient) -> tuple[int, Any]:
    service = Service(client, None, Settings("demo", Path()))
    response = asyncio.run(health_module.health(service))
    return response.status_code, json.loads(response.body)


def test_what_health_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _health(Silent(True)) == (200, {"status": "ready", "detail": "ready"})
    code, said = _health(Silent(False))
    assert code == 503 and said == {"status": "silent", "detail": "the engine has not answered for 10 s"}
    client = Silent(False)
    clock = Clock(monkeypatch, client.pace)
    clock.step(2048, 5.0)
    client.pace.began(2048)
    clock.now += 19
    assert _health(client)[0] == 200, "a long step of a long prompt"
    clock.now += 2
    assert _health(client) == (503, {
        "status": "silent",
        "detail": "the engine's step has taken 21.0 s; with 2048 prompt tokens it should take 20.0 s at most",
    })  # fmt: skip


def _ask(server: Running) -> tuple[int, float, str]:
    """Status of /health, how long it took, and what it says."""
    started = time.monotonic()
    connection = HTTPConnection(*server.address, timeout=20)
    connection.request("GET", "/health")
    response = connection.getresponse()
    return response.status, time.monotonic() - started, response.read().decode()


def test_a_real_engine_that_stops_in_a_step() -> None:
    """Young: 200, at once. Overdue: 503, at once. Going on: 200."""
    with running() as server:
        (engine,) = children(server.process.pid)
        server.json(PATH, completion([5] * 50, 20))
        with Stream(server, completion([1, 2], 1900)).begin() as stream:
            os.kill(engine, signal.SIGSTOP)
            try:
                time.sleep(1.5)
                code, took_s, _ = _ask(server)
                assert code == 200 and took_s < 2
                assert 1 < values(server)["engine_step_age_seconds"] < 10
                assert values(server)["engine_step_allowed_seconds"] == LEAST_S
                code, took_s, said = wait_for(lambda: (found := _ask(server))[0] == 503 and found)
                assert took_s < 2 and "step has taken 1" in said and '"silent"' in said
            finally:
                os.kill(engine, signal.SIGCONT)
            wait_for(lambda: _ask(server)[0] == 200)
            stream.leave()
        wait_for(lambda: values(server)["engine_step_age_seconds"] == 0)
