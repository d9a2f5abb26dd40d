"""What the endpoints use: the engine behind a bounded queue, the tokenizer and the state of the service."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from atb_models.sampling_params import SamplingParams
from atb_models.server.engine_client import EngineClient
from atb_models.server.errors import BadRequest, Busy, EngineGone
from atb_models.server.job import Job
from atb_models.server.messages import Facts
from atb_models.server.metrics import Metrics
from atb_models.server.tokenizing.process import TokenizerSource
from atb_models.server.tokenizing.texts import Texts
from atb_models.server.words import WordTable
from atb_models.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

MAX_RETRY_S = 60
FAR_TOO_LONG = 2  # times what a request can have


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
    chat_template: str | None = None
    trust_remote_code: bool = False


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
        source = TokenizerSource(settings.folder, settings.chat_template, settings.trust_remote_code)
        self.texts = Texts(tokenizer, source, lambda: self.facts.max_seq_len)
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
        field: str,
        timeout_s: float = math.inf,
    ) -> Job:
        """Submit these prompts. timeout_s: given if the client waits for less than the service's own limit.

        field: where the prompts stand in the body, for messages.
        Raises EngineGone, Busy if the queue is full, BadRequest for more prompts than the queue could ever take.
        """
        self.check_count(len(prompts), field)
        self.check_lengths(prompts, field)
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
        return Job(self.client, prompts, each, stream=stream, timeout_s=timeout_s, on_end=self._ended, field=field)

    def check_count(self, prompts: int, field: str) -> None:
        """Raises EngineGone, or BadRequest for more prompts than could ever run or wait together."""
        limit = self.facts.max_batch_size + self.settings.max_queue
        if prompts > limit:
            raise BadRequest(f"{field}: {prompts} requests in one, but at most {limit} may run or wait at once", field)

    def check_lengths(self, prompts: Sequence[list[int]], field: str) -> None:
        """Raises BadRequest for prompts so long that they shall not even be sent to the engine, which refuses others
        that do not fit."""
        most = self.facts.max_seq_len
        longest = max(map(len, prompts), default=0)
        if longest > FAR_TOO_LONG * most:
            raise BadRequest(f"{field}: the prompt has {longest} tokens, but at most {most - 1} fit", field)

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
