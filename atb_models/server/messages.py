"""The messages between the front and the engine process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from atb_models.outputs import FinishReason, TokenLogprobs
from atb_models.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Add:
    """From the front: queue a request. stream: send a `Piece` after each step with a token, else one at the end."""

    request_id: int
    prompt_token_ids: list[int]
    params: SamplingParams
    stream: bool


@dataclass(frozen=True, slots=True)
class Abort:
    """From the front: the client has given this request up."""

    request_id: int


@dataclass(frozen=True, slots=True)
class Ask:
    """From the front: are the engine and its ranks alive? The answer is a `Stepped` without pieces."""


@dataclass(frozen=True, slots=True)
class Loading:
    """From the engine: progress of its start."""

    detail: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of the engine that the front needs. size: number of ranks. pool_tokens: tokens that the KV cache holds.

    quantization: the method that quantised the weights; None: floats.
    max_seq_len: tokens of prompt and answer that a request can have, limited by the model, the flag and the KV cache.
    """

    dtype: str
    quantization: str | None
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
    """From the engine: the model is loaded; requests are accepted."""

    facts: Facts


@dataclass(frozen=True, slots=True)
class Accepted:
    """From the engine: the request is queued."""

    request_id: int


@dataclass(frozen=True, slots=True)
class Refused:
    """From the engine: the request can never be served; why, with the numbers."""

    request_id: int
    message: str


class Piece(NamedTuple):
    """From the engine: what a request has gained since its last piece. The last piece has a finish_reason.

    logprobs: of these token_ids, as in RequestOutput. prompt_logprobs: in the first piece, if they were asked for.
    metrics, error: as in RequestOutput. A tuple, because there is one for each request of a step and pickle takes four
    times as long for a dataclass.
    """

    request_id: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    logprobs: list[TokenLogprobs] | None
    prompt_logprobs: list[TokenLogprobs | None] | None
    metrics: dict[str, float]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """From the engine: its state after a step; see Engine.counts."""

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
class Stepping:
    """From the engine: a step with so many prompt tokens begins. Steps without any are not announced."""

    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """From the engine: the results of a step, or the answer to `Ask`."""

    pieces: list[Piece] = field(default_factory=list)
    load: Load = field(default_factory=Load)


@dataclass(frozen=True, slots=True)
class Failed:
    """From the engine: it ends, with this exit status."""

    message: str
    status: int


Command = Add | Abort | Ask
Report = Loading | Loaded | Accepted | Refused | Stepping | Stepped | Failed
