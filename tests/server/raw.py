"""A client that does what clients should not: it leaves, sends half a body, or asks for far more than it reads."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.server.running import Running

PATH = "/v1/completions"


def completion(prompt: list[int], max_tokens: int, **more: Any) -> dict[str, Any]:
    """A body for `PATH`: greedy, and not ended by EOS."""
    return {"model": "demo", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, **more}


class Stream:
    """An answer being streamed; leaving the block drops the connection."""

    def __init__(self, server: Running | tuple[str, int], body: dict[str, Any], path: str = PATH) -> None:
        address = server if isinstance(server, tuple) else server.address
        self._socket = socket.create_connection(address, timeout=60)
        data = json.dumps(body | {"stream": True}).encode()
        self._socket.sendall(head(path, len(data)) + data)
        self._file = self._socket.makefile("rb")
        self.status = 0

    def begin(self) -> Stream:
        """Wait for the first event."""
        self.status = int(self._file.readline().split()[1])
        assert self.status == 200, self._file.read()
        while not self._file.readline().startswith(b"data: "):
            pass
        return self

    def rest(self) -> bytes:
        """All that comes until the end."""
        try:
            return self._file.read()
        except ConnectionResetError:
            return b""

    def leave(self) -> None:
        self._file.close()
        self._socket.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.leave()


def head(path: str, length: int, *lines: str) -> bytes:
    """A POST's head for a body of so many bytes; the connection ends with the answer."""
    fields = ["Host: test", "Content-Type: application/json", f"Content-Length: {length}", "Connection: close", *lines]
    return "\r\n".join([f"POST {path} HTTP/1.1", *fields, "", ""]).encode()


def values(server: Running) -> dict[str, float]:
    """Series of /metrics by name, or by name and `le` for a bucket."""
    _, data = server.request("GET", "/metrics")
    found = {}
    for line in data.decode().splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            found[re.sub(r'\{model_name="[^"]*"\}|,model_name="[^"]*"', "", name)] = float(value)
    return found


def at_rest(server: Running) -> bool:
    """Whether no request is left and every block is free."""
    now = values(server)
    return not now["num_requests_running"] + now["num_requests_waiting"] and now["kv_blocks_free"] == now["kv_blocks"]


def wait_for(condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """The first true value of the condition."""
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return value


def children(pid: int) -> list[int]:
    """All processes that descend from this one."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children(child)]
    return found


@contextmanager
def stopped(server: Running) -> Iterator[None]:
    """All processes behind the front stand still: no answer comes to its end, however fast the engine is."""
    pids = children(server.process.pid)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
