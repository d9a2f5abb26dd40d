"""More streams at once than a server of two ranks takes: it serves its places and its queue, and refuses the others."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import httpx
import pytest

from tests.server.raw import PATH, completion
from tests.server.running import Running, running

STREAMS, PLACES, TOKENS = 400, 64 + 256, 150


async def ask(client: httpx.AsyncClient, number: int) -> int:
    """The status of a stream of TOKENS tokens; it is whole where it is 200, and an error object where it is not."""
    async with client.stream("POST", PATH, json=completion([5, number], TOKENS, stream=True)) as response:
        data = (await response.aread()).decode()
    if response.status_code == 200:
        events = data.removesuffix("\n\n").split("\n\n")
        assert events[-1] == "data: [DONE]" and json.loads(events[-2][6:])["choices"][0]["finish_reason"] == "length"
    else:
        assert json.loads(data)["error"]["type"] == "rate_limit_error" and int(response.headers["retry-after"]) >= 1
    return response.status_code


async def ask_all(server: Running) -> Counter[int]:
    limits = httpx.Limits(max_connections=STREAMS)
    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits, trust_env=False) as client:
        return Counter(await asyncio.gather(*(ask(client, number) for number in range(STREAMS))))


@pytest.mark.full
def test_four_hundred_streams_on_two_ranks() -> None:
    with running("--tp", "2") as server:
        assert asyncio.run(ask_all(server)) == {200: PLACES, 429: STREAMS - PLACES}
        assert server.request("GET", "/ready")[0].status == 200
        assert asyncio.run(ask_all(server)) == {200: PLACES, 429: STREAMS - PLACES}
        assert server.end() == 0 and "Traceback" not in server.log
