"""Many clients at once get, token for token, what `LLM.generate` gives each alone, while others leave."""

from __future__ import annotations

import random
import socket
from concurrent.futures import ThreadPoolExecutor

from atb_models import LLM, SamplingParams
from tests.server.running import Running

CLIENTS = 64
STEM = "The capital of France is Paris. " * 12


def leave_early(server: Running, path: str) -> None:
    """Ask for a long stream, read a little, and hang up."""
    body = b'{"prompt": "Once", "max_tokens": 4000, "ignore_eos": true, "stream": true}'
    with socket.create_connection(server.address, 60) as connection:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        connection.recv(200)


def test_64_clients(any_server: Running, llm: LLM) -> None:
    rng = random.Random(5)
    prompts = [STEM[: rng.randrange(len(STEM))] + rng.choice(["", " and", " 你好", " seven"]) for _ in range(CLIENTS)]
    lengths = [rng.randrange(1, 40) for _ in range(CLIENTS)]
    expected = llm.generate(prompts, [SamplingParams(max_tokens=length, ignore_eos=True) for length in lengths])

    def ask(number: int) -> list[int]:
        if number % 4 == 0:
            leave_early(any_server, "/v1/completions")
        parameters = {"max_new_tokens": lengths[number], "details": True}
        body = {"inputs": prompts[number], "stream": number % 2 == 0, "parameters": parameters}
        if body["stream"]:
            return [i for event in any_server.events("/infer", body) for i in event["token"]["id"]]
        ids: list[int] = any_server.json("/infer", body)["details"]["generated_token_ids"]
        return ids

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(ask, range(CLIENTS)))
    for answer, one in zip(answers, expected, strict=True):
        wanted = one.token_ids[: one.token_ids.index(1) + 1] if 1 in one.token_ids else one.token_ids
        assert answer == wanted
