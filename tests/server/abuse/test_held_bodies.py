"""The memory that bodies may take together; large ones crowd no small ones out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from atb_models.server.errors import Busy
from atb_models.server.http.held_bodies import COPIES, SMALL_BYTES, VALUE_BYTES, HeldBodies, release_body
from atb_models.server.middleware import LimitBody

LARGE = 10 * SMALL_BYTES


def test_large_bodies_share_and_give_back() -> None:
    bodies = HeldBodies(2 * LARGE)
    first, second, third = bodies.body(), bodies.body(), bodies.body()
    first.read(LARGE)
    second.read(LARGE)
    with pytest.raises(Busy, match=f"holds {2 * LARGE} bytes of large requests") as caught:
        third.read(LARGE)
    assert caught.value.retry_after == 1 and caught.value.status == 429
    third.read(SMALL_BYTES)
    second.release()
    second.release()
    third.read(LARGE)
    assert bodies.held == {False: 0, True: 2 * LARGE}
    for one in (first, second, third):
        one.release()
    assert bodies.held == {False: 0, True: 0}


def test_a_small_one_that_grows_changes_its_share() -> None:
    bodies = HeldBodies()
    one = bodies.body()
    for size in (1, SMALL_BYTES, SMALL_BYTES + 1, LARGE):
        one.read(size)
        assert bodies.held == ({False: size, True: 0} if size <= SMALL_BYTES else {False: 0, True: size})


def test_what_parsing_takes_counts_and_one_alone_always_fits() -> None:
    bodies = HeldBodies(1000)
    body = b"[" + b"1," * LARGE + b"1]"
    one = bodies.body()
    one.read(len(body))
    one.parse(body)
    assert bodies.held[True] == COPIES * len(body) + VALUE_BYTES * LARGE
    with pytest.raises(Busy):
        bodies.body().read(LARGE)


def _talk(app: LimitBody, *parts: bytes) -> list[Any]:
    """What is sent to a client whose body comes in these parts."""
    sent: list[Any] = []
    left = list(parts)

    async def receive() -> Any:
        if not left:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 5))
    return sent


def test_the_body_is_held_until_the_engine_has_it() -> None:
    seen: list[dict[bool, int]] = []

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        seen.append(dict(app._held.held))
        release_body(scope)
        seen.append(dict(app._held.held))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app = LimitBody(endpoint, 1 << 30, 5.0)
    assert _talk(app, b"x" * 100, b"y" * 100)[0]["status"] == 200
    assert seen == [{False: 200, True: 0}, {False: 0, True: 0}]
    other = app._held.body()
    other.read(1 << 26)
    sent = _talk(app, b"x" * 100_000, b"y" * 100)
    assert sent[0]["status"] == 429 and (b"retry-after", b"1") in sent[0]["headers"]
    assert _talk(app, b"x" * 100)[0]["status"] == 200, "a small one"
    assert app._held.held == {False: 0, True: 1 << 26}


def test_a_client_that_leaves_ends_the_endpoint() -> None:
    ended: list[bool] = []

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    left = asyncio.Event()

    async def receive() -> Any:
        if not left.is_set():
            left.set()
            return {"type": "http.request", "body": b"x", "more_body": False}
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError("there is nobody to answer")

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    asyncio.run(asyncio.wait_for(LimitBody(endpoint, 100, 5.0)(scope, receive, send), 5))
    assert ended == [True]


def test_a_fault_of_the_endpoint_is_not_hidden() -> None:
    async def endpoint(*_: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _talk(LimitBody(endpoint, 100, 5.0), b"x")
