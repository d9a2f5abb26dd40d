"""More connections than descriptors: the soft limit rises, the log stays short, the service recovers."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from atb_models.server.channel import Channel, packed
from atb_models.server.http import accept_errors
from atb_models.server.http.accept_errors import AcceptErrors
from tests.server.raw import PATH, completion, wait_for
from tests.server.running import Running, running


@contextmanager
def limited(soft: int, hard: int) -> Iterator[Running]:
    """A server started where open files are limited so. The hard limit is set after the start: it cannot be raised."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        with running(wait=False) as server:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            server.wait_until_ready()
            if hard < before[1]:
                resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (hard, hard))
            yield server
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def limits_of(pid: int) -> list[str]:
    match = re.search(r"^Max open files\s+(\S+)\s+(\S+)", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE)
    assert match is not None
    return [match[1], match[2]]


def test_the_soft_limit_rises_to_the_hard_one() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with limited(128, hard) as server:
        assert limits_of(server.process.pid) == [str(hard)] * 2
        clients = [socket.create_connection(server.address, timeout=5) for _ in range(250)]
        assert server.request("GET", "/ready")[0].status == 200
        for client in clients:
            client.close()
        assert "none can be accepted" not in server.log


def test_without_descriptors_the_log_has_a_line_and_the_service_recovers() -> None:
    with limited(1024, 100) as server:
        clients = [socket.create_connection(server.address, timeout=5) for _ in range(200)]
        wait_for(lambda: "none can be accepted" in server.log)
        size = len(server.log)
        time.sleep(2.5)  # asyncio tries again every second
        assert len(server.log) == size, server.log[size:]
        assert "open files are limited to 100" in server.log and "Traceback" not in server.log
        for client in clients:
            client.close()
        assert server.json(PATH, completion([1, 2], 3))["usage"]["completion_tokens"] == 3
        assert server.end() == 0


def test_one_line_a_minute_and_other_errors_as_usual(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(accept_errors, "monotonic", lambda: clock[0])
    caplog.set_level(logging.ERROR)
    handler, loop = AcceptErrors(), asyncio.new_event_loop()
    try:
        for clock[0] in range(0, 130, 10):
            for _ in range(100):
                handler(loop, {"message": "x", "exception": OSError(errno.EMFILE, "Too many"), "socket": object()})
        assert [record.name for record in caplog.records] == [accept_errors.__name__] * 3
        assert "(1 attempts)" in caplog.messages[0] and "(600 attempts)" in caplog.messages[1]
        caplog.clear()
        other: dict[str, Any] = {"message": "a task failed", "exception": ValueError("x")}
        handler(loop, other)
        handler(loop, {"message": "a file", "exception": OSError(errno.EMFILE, "Too many")})
        assert [record.name for record in caplog.records] == ["asyncio"] * 2
    finally:
        loop.close()


def test_the_channel_works_with_high_descriptors() -> None:
    """select.select would refuse them; an engine that is started again may get one."""
    ours, theirs = socket.socketpair()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 2048:
        pytest.skip("the hard limit of open files is below 2048")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, before[1]))
    try:
        high = socket.socket(fileno=os.dup2(theirs.fileno(), 1500))
        with ours, theirs, high:
            ours.sendall(packed("hello"))
            assert Channel(high).take(1.0) == ["hello"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
