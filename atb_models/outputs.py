"""The result of a request."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from atb_models.errors import AtbError
from atb_models.wording import counted

FinishReason = Literal["stop", "length", "abort", "error"]
# Token id -> log-probability at one position: first the token at that position, then the most probable ones, then the
# ids that were asked for.
TokenLogprobs = dict[int, float]
LEAST_LOGPROB = -9999.0


@dataclass(slots=True)
class RequestOutput:
    """A request's answer so far; it is complete once `finish_reason` is set.

    index: its place among the prompts of the call. token_ids: the new tokens, an EOS or stop token included.
    text: these as text, without the EOS or stop token and cut before a stop string ("" without tokenizer files).
    delta: in streaming, the text added since the request's previous output.
    finish_reason: "stop" (EOS, stop token or stop string), "length" (max_tokens or max_seq_len), "abort",
    "error" (it could not go on: `error` says why, the rest is what it had by then); None while running.
    logprobs: one {token id: log-probability} per new token if asked for.
    prompt_logprobs: the same per prompt token if asked for, None for the first, which nothing predicts; in streaming in
    every output. None in a request that was aborted before its prompt was computed.
    metrics: queue_s, first_token_s and total_s in seconds since arrival (absent until known), prompt_tokens,
    generated_tokens, cached_tokens (prompt tokens found in the prefix cache) and preemptions.
    """

    index: int
    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: FinishReason | None
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    delta: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    def raise_for_error(self) -> None:
        """Raises AtbError if the request ended with "error"."""
        if self.error is not None:
            tokens = counted(len(self.token_ids), "token")
            raise AtbError(f"request {self.index} ended with an error after {tokens}: {self.error}")


def finite(logprob: float) -> float:
    """A log-probability as JSON can have it; -9999, OpenAI's number for what cannot be, for all that is no number."""
    return max(logprob, LEAST_LOGPROB) if math.isfinite(logprob) else LEAST_LOGPROB
