"""What the front and the engine process say to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from atb_models.outputs import FinishReason, TokenLogprobs
from atb_models.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Add:
    """Front: queue a request. stream: a `Piece` for each step that gives it a token, else one when it has ended."""

    request_id: int
    prompt_token_ids: list[int]
    params: SamplingParams
    stream: bool


@dataclass(frozen=True, slots=True)
class Abort:
    """Front: nobody waits for this request any more."""

    request_id: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Front: are you, and your ranks, there? The answer is a `Stepped` without pieces."""


@dataclass(frozen=True, slots=True)
class Loading:
    """Engine: how far its start is."""

    detail: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What the front must know of the engine. pool_tokens: what the KV cache holds; size: ranks."""

    dtype: str
    device: str
    size: int
    vocab_size: int
    max_seq_len: int
    max_batch_size: int
    block_size: int
    total_blocks: int

    @property
    def pool_tokens(self) -> int:
        return self.block_size * self.total_blocks


@dataclass(frozen=True, slots=True)
class Loaded:
    """Engine: it is loaded and takes requests."""

    facts: Facts


@dataclass(frozen=True, slots=True)
class Accepted:
    """Engine: the request is queued."""

    request_id: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Engine: the request can never be served; why, with the numbers."""

    request_id: int
    message: str


class Piece(NamedTuple):
    """Engine: what a request has gained since its last piece; the last one has a finish_reason.

    logprobs: of these token_ids, as in RequestOutput. prompt_logprobs: in the first piece of a request that asked for
    them. metrics: RequestOutput's. A tuple, for a step has one for each request and a dataclass takes four times as
    long through pickle.
    """

    request_id: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    logprobs: list[TokenLogprobs] | None
    prompt_logprobs: list[TokenLogprobs | None] | None
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Load:
    """Engine: its state after a step; see Engine.counts."""

    running: int = 0
    waiting: int = 0
    free_blocks: int = 0
    steps: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_hit_tokens: int = 0
    host_s: float = 0.0
    run_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Stepped:
    """Engine: one step is done, or it was asked."""

    pieces: list[Piece] = field(default_factory=list)
    load: Load = field(default_factory=Load)


@dataclass(frozen=True, slots=True)
class Failed:
    """Engine: it ends, with this exit status."""

    message: str
    status: int


Command = Add | Abort | Ask
Report = Loading | Loaded | Accepted | Refused | Stepped | Failed
