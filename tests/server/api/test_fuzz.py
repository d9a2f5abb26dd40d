"""Nonsense, half of it, and slowly: no 500, no hang, nothing of our insides in replies; the next client is served."""

from __future__ import annotations

import http.client
import json
import random
import socket
import string
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.raw import PATH, at_rest, completion, head, values, wait_for
from tests.server.running import Running, running

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis: pip install -e .[test]")
hypothesis = pytest.importorskip("hypothesis")

POSTS = (
    "/", "/generate", "/generate_stream", "/v1/chat/completions", "/v1/completions", "/infer", "/infer_token",
    "/v1/tokenizer", "/tokenize", "/detokenize", "/v2/models/demo/generate", "/v2/models/demo/generate_stream",
)  # fmt: skip
GOOD = (
    ("/", {"prompt": "a", "max_length": 4}),
    ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 2, "temperature": 0.5, "stop": ["x"]}}),
    ("/generate", {"prompt": "a", "max_tokens": 2, "top_k": 3}),
    ("/v1/chat/completions",
     {"model": "demo", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "top_p": 0.9, "stream": True}),
    ("/v1/completions",
     {"model": "demo", "prompt": [1, 2, 3], "max_tokens": 2, "logprobs": 2, "n": 2, "stop": ["x"], "seed": 1}),
    ("/v2/models/demo/generate", {"id": "1", "text_input": "a", "parameters": {"max_new_tokens": 2}}),
    ("/tokenize", {"prompt": "a"}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
)  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1e308, -1e308, 10**40, -(10**400), 0.1, "", "\0", "\ud800", "\ud83d\ude00", "1", "NaN", [], {},
    [[]], [None], {"a": {}}, [10**9], ["a"] * 300, "x" * 5000, [[1], "a"], {"\ud800": "\ud800"}, {"role": "user"},
)  # fmt: skip
MALFORMED = (
    b"", b" ", b"{", b"}", b"null", b"[]", b'"a"', b"1", b"{]", b'{"prompt": }', b'{"prompt": "a",}',
    b"{'prompt': 'a'}", b'{"prompt": "\xff\xfe"}',
    b'\xff\xfe{\0"\0', b'\xef\xbb\xbf{"prompt": "a"}', b'{"prompt": NaN}',
    b'{"prompt": "a", "max_tokens": Infinity}', b'{"prompt": "a", "max_tokens": 1' + b"0" * 5000 + b"}",
    b'{"prompt": "a", "temperature": 1e999999}', b"[" * 100_000, b'{"a":' * 100_000, b'{"messages": ' + b"[" * 50_000,
    b'{"prompt": "a", "prompt": 1}', b"\0" * 100, b'{"prompt": "\\ud800", "max_tokens": 1, "model": "demo"}',
    b'{"prompt": "\\u0000", "max_tokens": 1, "model": "demo"}', b'{"inputs": "\\udfff"}',
)  # fmt: skip


@pytest.fixture(scope="module")
def target() -> Iterator[Running]:
    """Short answers, so that what is valid by chance is soon done. It must work afterwards and have nothing to hide."""
    with running("--max_seq_len", "64", "--max_batch_size", "4") as server:
        yield server
        wait_for(lambda: at_rest(server))
        assert server.json(PATH, completion([1, 2], 3))["usage"]["completion_tokens"] == 3
        assert "Traceback" not in server.log and " 500 " not in server.log
        assert server.end() == 0


def _send(server: Running, path: str, body: bytes) -> int:
    """The status of the answer, which must be in form and show nothing of ours."""
    response, data = server.request("POST", path, body)
    shown = data.decode()
    assert response.status in (200, 400, 404, 422), (path, body[:300], response.status, shown[:300])
    if response.status != 200:
        error = json.loads(shown)["error"]
        assert (error["message"] if isinstance(error, dict) else error).strip()
        for secret in ("Traceback", 'File "', "/atb_models", "site-packages", ".py", "pydantic"):
            assert secret not in shown, (path, body[:300], shown[:300])
    return response.status


@pytest.mark.parametrize("path", POSTS)
def test_what_is_no_json(target: Running, path: str) -> None:
    for body in MALFORMED:
        _send(target, path, body)


def _mutants(count: int) -> Iterator[tuple[str, bytes]]:
    """Good bodies with one or two odd values, at any place in them, or cut, or with bytes exchanged."""
    chance = random.Random(0)
    for _ in range(count):
        path, good = chance.choice(GOOD)
        body: Any = json.loads(json.dumps(good))
        for _ in range(chance.choice((1, 1, 2))):
            place, keys = body, list(body)
            if "parameters" in body and isinstance(body["parameters"], dict) and chance.random() < 0.6:
                place, keys = body["parameters"], list(body["parameters"])
            new = "".join(chance.choices(string.printable, k=5))
            place[chance.choice([*keys, new, "stream", "max_tokens", "temperature", "stop"])] = chance.choice(ODD)
        data = bytearray(json.dumps(body).encode())
        kind = chance.random()
        if kind < 0.1:
            del data[chance.randrange(len(data)) :]
        elif kind < 0.2:
            data[chance.randrange(len(data))] = chance.randrange(256)
        yield path if chance.random() < 0.8 else chance.choice(POSTS), bytes(data)


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.full)])
def test_odd_values_everywhere(target: Running, count: int) -> None:
    statuses = {_send(target, path, body) for path, body in _mutants(count)}
    assert {200, 400, 422} <= statuses


def test_what_is_no_http(target: Running) -> None:
    chance = random.Random(1)
    heads = [
        b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\0\x01\0", b"POST / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000,
        *(chance.randbytes(200) + b"\r\n\r\n" for _ in range(20)),
    ]  # fmt: skip
    for data in heads:
        with socket.create_connection(target.address, timeout=10) as client:
            try:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                answer = client.recv(100)
            except (BrokenPipeError, ConnectionResetError):
                continue
            assert b" 500 " not in answer, data[:100]


def test_clients_that_send_half_and_leave_or_stay(target: Running) -> None:
    """Slow ones do not keep others waiting; those that leave with a part sent are forgotten."""
    body = json.dumps(completion([1, 2, 3], 2)).encode()
    whole = head(PATH, len(body)) + body
    slow = []
    for end in range(1, len(whole), 7):
        client = socket.create_connection(target.address, timeout=10)
        client.sendall(whole[:end])
        slow.append(client)
        if end % 2:
            client.close()
    target.json(PATH, completion([1, 2], 2))
    for end, client in zip(range(1, len(whole), 7), slow, strict=True):
        if not end % 2:
            client.sendall(whole[end:])
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
            client.close()
    assert values(target)["num_requests_waiting"] == 0


def test_paths_that_are_none(target: Running) -> None:
    for path in (
        "/../../etc/passwd",
        "/%2e%2e/",
        "/v1/models/%00",
        "/v1/models/../x",
        "//",
        "/v1",
        "/%ff",
        "/v2/models/x/y",
    ):
        for method in ("GET", "POST", "DELETE", "BREW"):
            connection = http.client.HTTPConnection(*target.address, timeout=10)
            connection.request(method, path)
            response = connection.getresponse()
            assert response.status in (400, 404, 405, 422), (method, path, response.status)
            assert b"Traceback" not in response.read()
            connection.close()


CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "negative_data_rejection", "unsupported_method",
)  # fmt: skip


def _examples(server: Running, count: int) -> int:
    """Send what the OpenAPI document allows, and what it does not; the number of requests sent."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    checks = [check for check in schemathesis.checks.CHECKS.get_all() if check.__name__ in CHECKS]
    assert len(checks) == len(CHECKS)
    sent = 0
    for operation in (result.ok() for result in schema.get_all_operations()):
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):

            @hypothesis.settings(
                max_examples=count, database=None, deadline=None, derandomize=True,
                suppress_health_check=list(hypothesis.HealthCheck),
            )  # fmt: skip
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def each(case: Any) -> None:
                nonlocal sent
                sent += 1
                case.call_and_validate(checks=checks, timeout=60)

            try:
                each()
            except hypothesis.errors.Unsatisfiable:  # nothing can be wrong in a request without a body
                assert mode is schemathesis.GenerationMode.NEGATIVE and operation.method == "get", operation.label
    return sent


@pytest.mark.parametrize("count", [2, pytest.param(200, marks=pytest.mark.full)])
def test_the_openapi_document_is_true(target: Running, count: int) -> None:
    assert _examples(target, count) >= 50
