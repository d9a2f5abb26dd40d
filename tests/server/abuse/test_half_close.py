"""A client that sends its request and shuts down its writing side gets its answer; one that leaves is noticed."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.raw import PATH, at_rest, completion, head, stopped, values, wait_for
from tests.server.running import Running, running

LONG = 8000  # tokens: far more than any engine computes before the test has done its part


@pytest.fixture(scope="module")
def endless() -> Iterator[Running]:
    """One request at a time, another may wait."""
    with running("--max_batch_size", "1", "--max_queue", "4", "--config_overrides", '{"eos_token_id": 2495}') as server:
        yield server
        assert "Traceback" not in server.log


def request(body: Any, path: str = PATH, *lines: str) -> bytes:
    data = json.dumps(body).encode()
    return head(path, len(data), *lines) + data


def half_closed(server: Running, data: bytes) -> socket.socket:
    client = socket.create_connection(server.address, timeout=60)
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)
    return client


def answer(client: socket.socket) -> tuple[bytes, bytes]:
    """Status line and body."""
    with client, client.makefile("rb") as file:
        data = file.read()
    first, _, rest = data.partition(b"\r\n")
    return first, rest.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    "path, body",
    [
        (PATH, completion([1, 2], 3)),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}),
        ("/generate", {"inputs": "hi"}),
        ("/tokenize", {"prompt": "hi"}),
    ],
)
def test_a_whole_answer(server: Running, path: str, body: Any) -> None:
    expected = json.loads(server.request("POST", path, body)[1])
    first, data = answer(half_closed(server, request(body, path)))
    assert first == b"HTTP/1.1 200 OK"
    assert set(json.loads(data)) == set(expected)


def test_a_get_and_a_refusal(server: Running) -> None:
    first, data = answer(half_closed(server, b"GET /ready HTTP/1.1\r\nHost: a\r\n\r\n"))
    assert first == b"HTTP/1.1 200 OK" and b'"ready"' in data
    assert answer(half_closed(server, request({"prompt": 3})))[0].startswith(b"HTTP/1.1 422 ")


def test_a_stream(server: Running) -> None:
    first, data = answer(half_closed(server, request(completion([1, 2], 40, stream=True))))
    assert first == b"HTTP/1.1 200 OK"
    assert b'"finish_reason":"length"' in data and b"data: [DONE]\n\n" in data and b"\0" not in data


def test_an_answer_that_takes_longer_than_several_probes(endless: Running) -> None:
    """No byte of a probe is in the answer: not before it, nor in the middle of a stream that waits in the queue."""
    with socket.create_connection(endless.address) as busy:
        busy.sendall(request(completion([5], LONG, stream=True)))
        busy.recv(100)
        whole = half_closed(endless, request(completion([1, 2], 3)))
        stream = half_closed(endless, request(completion([1, 2], 3, stream=True)))
        wait_for(lambda: values(endless)["num_requests_waiting"] == 2)
        with stopped(endless):
            time.sleep(3.5)
    first, data = answer(whole)
    assert first == b"HTTP/1.1 200 OK" and json.loads(data)["usage"]["completion_tokens"] == 3
    first, data = answer(stream)
    assert first == b"HTTP/1.1 200 OK" and data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") and b"\0" not in data


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("half_first", [False, True], ids=["leaves", "leaves after its half"])
def test_one_that_leaves_is_noticed(endless: Running, stream: bool, half_first: bool) -> None:
    before = values(endless)["request_aborted_total"]
    client = socket.create_connection(endless.address)
    client.sendall(request(completion([1, 2, 3], LONG, stream=stream)))
    if half_first:
        client.shutdown(socket.SHUT_WR)
    wait_for(lambda: values(endless)["num_requests_running"] == 1)
    time.sleep(0.3)
    client.close()
    wait_for(lambda: at_rest(endless), 3)
    assert values(endless)["request_aborted_total"] == before + 1


@pytest.mark.parametrize("stream", [False, True])
def test_one_that_leaves_the_queue_is_noticed(endless: Running, stream: bool) -> None:
    with socket.create_connection(endless.address) as busy:
        busy.sendall(request(completion([5], LONG, stream=True)))
        busy.recv(100)
        waiting = socket.create_connection(endless.address)
        waiting.sendall(request(completion([1, 2, 3], 5, stream=stream)))
        wait_for(lambda: values(endless)["num_requests_waiting"] == 1)
        waiting.close()
        wait_for(lambda: values(endless)["num_requests_waiting"] == 0, 2)
        assert values(endless)["num_requests_running"] == 1
    wait_for(lambda: at_rest(endless), 3)


def test_requests_sent_together_are_all_answered(server: Running) -> None:
    one = request(completion([1, 2], 2)).replace(b"Connection: close\r\n", b"")
    with half_closed(server, one * 3) as client, client.makefile("rb") as file:
        data = file.read()
    assert data.count(b"HTTP/1.1 200 OK") == 3


def test_half_a_request_is_none(server: Running) -> None:
    data = request(completion([1, 2], 2))
    for end in (10, len(data) - 10):
        with half_closed(server, data[:end]) as client:
            assert client.recv(100) == b""
