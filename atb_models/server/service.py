"""What the endpoints use: the engine behind a bounded queue, the tokenizer and the state of the service."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TypeVar

from atb_models.errors import RequestError
from atb_models.sampling_params import SamplingParams
from atb_models.server.engine_client import EngineClient
from atb_models.server.errors import BadRequest, Busy, EngineGone
from atb_models.server.job import Job
from atb_models.server.messages import Facts
from atb_models.server.metrics import Metrics
from atb_models.server.words import WordTable
from atb_models.text.chat_template import Message
from atb_models.text.tokenizer import Tokenizer
from atb_models.text.tokenizer_added import LONG_TEXT

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_RETRY_S = 60


@dataclass(frozen=True)
class Settings:
    """model_name: what clients call the model. max_queue: requests that may wait while others run.

    request_timeout_s: until an answer must be complete. log_prompts: log prompts and answers, for debugging.
    """

    model_name: str
    folder: Path
    max_queue: int = 256
    request_timeout_s: float = 600.0
    log_prompts: bool = False


class State(Enum):
    """LOADING -> READY -> DRAINING; DEAD follows any of them."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


class Service:
    """The front's view of the model."""

    def __init__(self, client: EngineClient, tokenizer: Tokenizer | None, settings: Settings) -> None:
        self.client, self.tokenizer, self.settings = client, tokenizer, settings
        self.words = WordTable(tokenizer)
        self.metrics = Metrics(settings.model_name, lambda: self.client)
        self.draining = False
        self.open_jobs = 0
        self.attach(client)

    def attach(self, client: EngineClient) -> None:
        """Use this engine from now on."""
        self.client = client
        self.metrics.engine_started()
        client.on_step = self.metrics.stepped

    @property
    def state(self) -> State:
        if self.client.failure is not None:
            return State.DEAD
        if self.draining:
            return State.DRAINING
        return State.LOADING if self.client.facts is None else State.READY

    @property
    def detail(self) -> str:
        """The state in words."""
        words = {
            State.LOADING: f"the model is loading: {self.client.detail}",
            State.READY: "ready",
            State.DRAINING: "the service is ending and takes no new requests",
            State.DEAD: self.client.failure or "",
        }
        return words[self.state]

    @property
    def facts(self) -> Facts:
        """Raises EngineGone while no engine takes requests."""
        if self.state is not State.READY or self.client.facts is None:
            raise EngineGone(self.detail)
        return self.client.facts

    def job(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        stream: bool,
        timeout_s: float = math.inf,
    ) -> Job:
        """Submit these prompts. timeout_s: given if the client waits for less than the service's own limit.

        Raises EngineGone, Busy if the queue is full, BadRequest for more prompts than the queue could ever take.
        """
        self.check_count(len(prompts))
        facts = self.facts
        limit, there = facts.max_batch_size + self.settings.max_queue, self.client.open_requests
        if there + len(prompts) > limit:
            self.metrics.refused()
            raise Busy(
                f"{there} requests are running or waiting, at most {limit} may; try again later", self._retry_s(facts)
            )
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        self.metrics.received(len(prompts))
        self.open_jobs += 1
        timeout_s = min(timeout_s, self.settings.request_timeout_s)
        return Job(self.client, prompts, each, stream=stream, timeout_s=timeout_s, on_end=self._ended)

    def check_count(self, prompts: int) -> None:
        """Raises EngineGone, or BadRequest for more prompts than could ever run or wait together."""
        limit = self.facts.max_batch_size + self.settings.max_queue
        if prompts > limit:
            raise BadRequest(f"{prompts} requests in one, but at most {limit} may run or wait at once")

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. Raises BadRequest."""
        (ids,) = await self.encode_all([text], add_special_tokens=add_special_tokens)
        return ids

    async def encode_all(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of each text. Raises BadRequest."""
        size = sum(map(len, texts))
        return await self._aside(size, lambda: [self._tokens().encode(text, add_special_tokens) for text in texts])

    async def encode_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation, up to the start of the assistant's turn. Raises BadRequest."""
        size = sum(len(str(message.get("content", ""))) for message in messages)
        return await self._aside(
            size, lambda: self._tokens().apply_chat_template(messages, add_generation_prompt=add_generation_prompt)
        )

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids. Raises BadRequest."""
        return self._tokens().decode(token_ids, skip_special_tokens)

    def _tokens(self) -> Tokenizer:
        if self.tokenizer is None:
            raise BadRequest("this checkpoint has no tokenizer files; give token ids instead of text")
        return self.tokenizer

    async def _aside(self, size: int, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work) if size > LONG_TEXT else work()
        except RequestError as error:
            raise BadRequest(str(error)) from None

    def _retry_s(self, facts: Facts) -> int:
        """Seconds until one of the running requests ends, on average, and makes room in the queue."""
        return max(1, min(MAX_RETRY_S, math.ceil(self.metrics.mean_request_s / facts.max_batch_size)))

    def _ended(self, job: Job, error: BaseException | None) -> None:
        self.open_jobs -= 1
        self.metrics.ended(job, error)
        if self.settings.log_prompts:
            for answer in job.answers:
                prompt = answer.prompt_token_ids
                shown = self.tokenizer.decode(prompt, False) if self.tokenizer else prompt
                logger.info("prompt %r, answer %r", shown, answer.text)


def variants(params: SamplingParams, n: int) -> list[SamplingParams]:
    """The parameters `n` times. A seed is raised by 1 each time: the same seed would give the same answer."""
    if params.seed is None:
        return [params] * n
    return [replace(params, seed=params.seed + i) for i in range(n)]
