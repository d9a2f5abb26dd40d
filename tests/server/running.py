"""A real `atb-models serve` process for tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START_S = 120.0


class Running:
    """The process and what it has said. url: where it listens; host and port are its parts. key: sent if it is set."""

    def __init__(self, process: subprocess.Popen[str], key: str | None = None) -> None:
        self.process, self.key = process, key
        self.lines: list[str] = []
        self.url = ""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        return "".join(self.lines)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.split("://")[1].rsplit(":", 1)
        return host, int(port)

    def wait_until_ready(self) -> None:
        assert self._ready.wait(START_S) and self.url, f"the server did not start:\n{self.log}"

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        """Send a signal; the exit status."""
        self.process.send_signal(number)
        status = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return status

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[HTTPResponse, bytes]:
        """The response and its body. body: bytes as they are, anything else as JSON."""
        connection = HTTPConnection(*self.address, timeout=60)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body)
        known = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        try:
            connection.request(method, path, data, {**known, **(headers or {})})
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def json(self, path: str, body: Any = None, *, status: int = 200) -> Any:
        """The JSON that a POST of this body, or without one a GET, is answered with."""
        response, data = self.request("GET" if body is None else "POST", path, body)
        assert response.status == status, (response.status, data)
        return json.loads(data)

    def events(self, path: str, body: Any) -> list[Any]:
        """The events of a stream; JSON is read, anything else is text."""
        response, data = self.request("POST", path, body)
        assert response.status == 200, (response.status, data)
        assert response.getheader("content-type", "").startswith("text/event-stream")
        texts = data.decode().removesuffix("\n\n").split("\n\n")
        assert all(text.startswith("data: ") for text in texts), texts
        return [json.loads(text[6:]) if text[6] == "{" else text[6:] for text in texts]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if match := re.search(r"listening on (\S+),", line):
                self.url = match[1]
            if " ready: " in line:
                self._ready.set()
        self._ready.set()


@contextmanager
def running(*flags: str, env: Mapping[str, str] | None = None, wait: bool = True) -> Iterator[Running]:
    """`atb-models serve --port 0` with these flags; killed when the block is left, if it runs still."""
    process = subprocess.Popen(
        [sys.executable, "-m", "atb_models", "serve", "--port", "0", *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    server = Running(process, (env or {}).get("ATB_API_KEY"))
    try:
        if wait:
            server.wait_until_ready()
        yield server
    finally:
        if process.poll() is None:
            server.end()
