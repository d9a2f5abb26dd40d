"""Malformed requests from a seed: each is refused in time, in form, and by the name of what is wrong with it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.broken.requests import Malformed, malformed
from tests.server.raw import PATH, at_rest, completion, wait_for
from tests.server.running import Running, running

LONGEST_S = 10.0
INSIDES = ("Traceback", 'File "', "/atb_models", "site-packages", ".py", "pydantic", "/tmp/", "/root")


@pytest.fixture(scope="module")
def target() -> Iterator[Running]:
    with running() as server:
        yield server
        assert "Traceback" not in server.log and " 500 " not in server.log
        wait_for(lambda: at_rest(server))
        assert server.json(PATH, completion([1, 2], 3))["usage"]["completion_tokens"] == 3
        assert server.end() == 0


def check(server: Running, request: Malformed) -> None:
    started = time.monotonic()
    response, data = server.request("POST", request.path, request.body, {"Content-Type": request.content_type})
    took_s, shown = time.monotonic() - started, data.decode()
    about = (request.path, request.body[:300], request.names, response.status, shown[:500])
    assert response.status in (400, 404, 413, 422) and took_s < LONGEST_S, about
    error = json.loads(shown)["error"]
    message = error["message"] if isinstance(error, dict) else error
    assert any(name in message for name in request.names), about
    assert not any(word in shown for word in INSIDES), about


@pytest.mark.parametrize("seed, count", [(1, 100), pytest.param(2, 2000, marks=pytest.mark.full)])
def test_malformed_requests(target: Running, seed: int, count: int) -> None:
    for request in malformed(seed, count):
        check(target, request)


def test_a_seed_gives_the_same_requests() -> None:
    assert list(malformed(3, 50)) == list(malformed(3, 50)) != list(malformed(4, 50))
