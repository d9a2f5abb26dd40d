"""Many requests of all kinds at once, many of them broken off: right answers, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from atb_models import LLM, SamplingParams
from tests.server.raw import at_rest, children, head, values, wait_for
from tests.server.running import Running, running

CLIENTS = 64
LONGEST = 48  # new tokens
PATH = "/infer_token"


@pytest.fixture(scope="module")
def tight() -> Iterator[Running]:
    """Blocks for a few of the clients, so that requests wait, give way, and evict what the prefix cache holds.

    In fp32: after random prompts fp16 has two tokens with the same logit now and then, and the batch decides.
    """
    with running("--dtype", "fp32", "--block_size", "16", "--kv_blocks", "64", "--max_prefill_tokens", "512") as server:
        yield server


@dataclass(frozen=True)
class Case:
    """A request: how long its answer may be, whether it streams, and after how many bytes its client leaves."""

    prompt: int
    max_tokens: int
    stream: bool
    sent: float | None  # share of the request that is sent before the client leaves
    read: int | None  # bytes of the answer that are read before it does


@pytest.mark.parametrize("count", [150, pytest.param(5000, marks=pytest.mark.full)])
def test_soak(tight: Running, count: int) -> None:
    chance = random.Random(count)
    prompts = _prompts(chance, 60)
    with LLM(dtype="fp32") as llm:
        outputs = llm.generate(prompts, SamplingParams(max_tokens=LONGEST, temperature=0))
    expected = [output.token_ids for output in outputs]
    asyncio.run(_all(tight, prompts, expected, [_case(chance, len(prompts)) for _ in range(CLIENTS)]))
    before = _held(tight)
    checked = asyncio.run(_all(tight, prompts, expected, [_case(chance, len(prompts)) for _ in range(count)]))
    assert checked > count / 2
    after = _held(tight)
    assert after == before
    now = values(tight)
    ended = now["request_success_total"] + now["request_aborted_total"] + now["request_failed_total"]
    assert ended == now["request_received_total"] and not now["request_failed_total"]
    assert now["num_preemptions_total"] and now["npu_radix_match_hit_num"], "the soak is too gentle"
    assert tight.process.poll() is None and "Traceback" not in tight.log


def _prompts(chance: random.Random, count: int) -> list[list[int]]:
    """Of 1 to 250 tokens; most begin like others."""
    stems = [[chance.randrange(5, 1000) for _ in range(200)] for _ in range(4)]
    return [
        chance.choice(stems)[: chance.choice((0, 16, 33, 100, 200))]
        + [chance.randrange(5, 1000) for _ in range(chance.randrange(1, 50))]
        for _ in range(count)
    ]


def _case(chance: random.Random, prompts: int) -> Case:
    kind = chance.random()
    return Case(
        prompt=chance.randrange(prompts),
        max_tokens=chance.randrange(1, LONGEST + 1),
        stream=chance.random() < 0.5,
        sent=chance.random() if kind < 0.08 else None,
        read=chance.randrange(1500) if 0.08 <= kind < 0.3 else None,
    )


async def _all(server: Running, prompts: list[list[int]], expected: list[list[int]], cases: list[Case]) -> int:
    """Run all cases, so many at once; how many answers were compared."""
    gate = asyncio.Semaphore(CLIENTS)

    async def one(case: Case) -> bool:
        async with gate:
            answer = await asyncio.wait_for(_ask(server, prompts[case.prompt], case), 120)
        if answer is not None:
            assert answer == expected[case.prompt][: case.max_tokens], case
        return answer is not None

    return sum(await asyncio.gather(*map(one, cases)))


async def _ask(server: Running, prompt: list[int], case: Case) -> list[int] | None:
    """The answer's token ids; None where the client leaves before its end."""
    parameters = {"max_new_tokens": case.max_tokens, "temperature": 0, "details": True}
    body = json.dumps({"input_id": prompt, "stream": case.stream, "parameters": parameters}).encode()
    request = head(PATH, len(body)) + body
    reader, writer = await asyncio.open_connection(*server.address)
    try:
        writer.write(request if case.sent is None else request[: int(len(request) * case.sent)])
        await writer.drain()
        if case.sent is not None:
            return None
        if case.read is not None:
            await reader.read(case.read)
            return None
        answer = await reader.read()
    finally:
        writer.close()
    status, _, rest = answer.partition(b"\r\n")
    assert b" 200 " in status, answer
    return _ids(rest.partition(b"\r\n\r\n")[2], stream=case.stream)


def _ids(data: bytes, *, stream: bool) -> list[int]:
    if not stream:
        ids: list[int] = json.loads(data)["details"]["generated_token_ids"]
        return ids
    events = [json.loads(line[6:]) for line in data.splitlines() if line.startswith(b"data: ")]
    ids = [token for event in events for token in event["token"]["id"]]
    assert ids == events[-1]["details"]["generated_token_ids"]
    return ids


def _held(server: Running) -> dict[str, list[int] | float]:
    """What the processes hold once all is done and the engine, at rest, has checked its blocks."""
    wait_for(lambda: at_rest(server))
    time.sleep(1.5)
    assert server.request("GET", "/health")[0].status == 200
    tasks = values(server)["front_tasks"]
    time.sleep(0.2)  # until the front has seen that the connection is closed
    pids = [server.process.pid, *children(server.process.pid)]
    return {
        "files": [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids],
        "threads": [len(os.listdir(f"/proc/{pid}/task")) for pid in pids],
        "tasks": tasks,
    }
