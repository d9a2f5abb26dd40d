"""The load that `bench serve` puts on a server, and the arrival times of the answers' tokens."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from atb_models.clients.http import RemoteServer
from atb_models.errors import AtbError

Body = dict[str, Any]
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
IDS = range(100, 1000)  # ids that every model has; lower ones are often special


@dataclass
class Outcome:
    """One request. Times are perf_counter's.

    first_s, last_s: of the first and last event with text or an end reason. gaps_s: between these events. error: why
    there is no complete answer. is_counted: the server has reported the number of tokens.
    """

    due_s: float
    sent_s: float = 0.0
    first_s: float | None = None
    last_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0
    is_counted: bool = False
    error: str | None = None

    @property
    def ttft_s(self) -> float | None:
        """Measured from the time when it was due: if the server delays the sending, it delays the request."""
        return None if self.first_s is None else self.first_s - self.due_s

    @property
    def e2e_s(self) -> float:
        return self.last_s - self.due_s

    @property
    def token_s(self) -> float | None:
        """Mean time of a token after the first."""
        if self.first_s is None or self.tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.tokens - 1)


def random_bodies(count: int, input_len: int, output_len: int, seed: int) -> Iterator[Body]:
    """Different prompts of `input_len` token ids each; each answer has `output_len` tokens."""
    source = random.Random(seed)
    for _ in range(count):
        yield {"prompt": source.choices(IDS, k=input_len), "max_tokens": output_len, "ignore_eos": True}


def arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Arrival times of independent requests, `rate` a second on average: a Poisson process that starts at 0."""
    source = random.Random(seed)
    return list(itertools.accumulate((source.expovariate(rate) for _ in range(count - 1)), initial=0.0))


async def open_loop(
    bodies: Sequence[Body], due: Sequence[float], ask: Callable[[Body, float], Awaitable[Outcome]]
) -> list[Outcome]:
    """Send each request at its time, whether earlier ones have been answered or not."""
    start = perf_counter()

    async def later(body: Body, offset: float) -> Outcome:
        await asyncio.sleep(start + offset - perf_counter())
        return await ask(body, start + offset)

    return list(await asyncio.gather(*(later(body, offset) for body, offset in zip(bodies, due, strict=True))))


async def closed_loop(
    bodies: Sequence[Body], concurrency: int, ask: Callable[[Body, float], Awaitable[Outcome]]
) -> list[Outcome]:
    """`concurrency` clients, each of which sends its next request when it has its answer."""
    waiting, outcomes = iter(bodies), []

    async def client() -> None:
        for body in waiting:
            outcomes.append(await ask(body, perf_counter()))

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return outcomes


async def ask_once(server: RemoteServer, body: Body, due_s: float) -> Outcome:
    """Stream one answer. An error becomes part of the outcome."""
    outcome = Outcome(due_s, sent_s=perf_counter())
    path = CHAT if "messages" in body else COMPLETION
    try:
        async with aclosing(server.events(path, body)) as events:
            async for event in events:
                _note(outcome, event, perf_counter())
    except AtbError as error:
        outcome.error = str(error)
    if not outcome.is_counted:
        outcome.tokens = len(outcome.gaps_s) + (outcome.first_s is not None)
    return outcome


def _note(outcome: Outcome, event: Any, now: float) -> None:
    for choice in event.get("choices") or ():
        text = choice.get("text") or (choice.get("delta") or {}).get("content")
        if not text and not choice.get("finish_reason"):
            continue
        if outcome.first_s is None:
            outcome.first_s = now
        elif text:
            outcome.gaps_s.append(now - outcome.last_s)
        outcome.last_s = now
    if usage := event.get("usage"):
        outcome.prompt_tokens, outcome.tokens = usage["prompt_tokens"], usage["completion_tokens"]
        outcome.is_counted = True
