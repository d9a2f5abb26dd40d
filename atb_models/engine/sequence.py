"""A request inside the engine: its tokens, its KV blocks and how far they are computed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from enum import Enum
from operator import index as index_of
from time import perf_counter
from typing import TYPE_CHECKING

from atb_models.engine.sampling.processors import make_processors
from atb_models.errors import RequestError
from atb_models.outputs import FinishReason, RequestOutput, TokenLogprobs
from atb_models.sampling_params import SamplingParams

if TYPE_CHECKING:
    from random import Random

    from torch import Tensor

    from atb_models.text.detokenizer import Detokenizer

_ids = itertools.count()


class Status(Enum):
    """WAITING (no blocks) -> PREFILL (known tokens being computed) -> DECODE (one new token a step) -> FINISHED.

    Preemption leads from PREFILL or DECODE back to WAITING.
    """

    WAITING = 0
    PREFILL = 1
    DECODE = 2
    FINISHED = 3


class Sequence:
    """State of one request; the scheduler moves it, the block manager fills its block table.

    `token_ids` is prompt and output in one list. The first `num_computed_tokens` have their keys and values in the KV
    cache, token i in slot block_table[i // block_size] * block_size + i % block_size. While the sequence runs at least
    one token is not computed yet: the last one, whose logits give the next.

    params: resolved. eos_token_ids: ids that end it (unless ignore_eos). want_prompt_logits: keep the logits of every
    prompt token in `prompt_logits`. ends_with_pool: nobody asked for this many max_tokens, so it may end where the KV
    blocks do.
    Raises RequestError for an empty prompt or one that is not made of whole numbers.
    """

    __slots__ = (
        "arrival_s", "block_hashes", "block_table", "detokenizer", "ends_with_pool", "error", "finish_reason",
        "finished_s", "first_token_s", "index", "is_plain_greedy", "logprobs", "max_len", "num_cached_tokens",
        "num_computed_tokens", "num_preemptions", "num_prompt_tokens", "num_registered_blocks", "params", "processors",
        "prompt_logits", "prompt_logprobs", "prompt_token_ids", "random", "scheduled_s", "seq_id", "status",
        "stop_ids", "stream", "token_ids", "want_prompt_logits",
    )  # fmt: skip

    def __init__(
        self,
        prompt_token_ids: Iterable[int],
        params: SamplingParams,
        eos_token_ids: Iterable[int] = (),
        *,
        index: int = 0,
        stream: bool = False,
        want_prompt_logits: bool = False,
        ends_with_pool: bool = False,
    ) -> None:
        self.seq_id = next(_ids)
        try:
            self.prompt_token_ids = [index_of(token) for token in prompt_token_ids]
        except TypeError as error:
            raise RequestError(f"a prompt must be a list of token ids, whole numbers: {error}") from None
        self.token_ids = list(self.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        if not self.token_ids:
            raise RequestError("the prompt has 0 tokens; at least 1 is needed")
        self.params = params
        self.processors = make_processors(params, self.prompt_token_ids)
        self.is_plain_greedy = params.is_plain_greedy and not self.processors
        self.stop_ids = frozenset(params.stop_token_ids or ()).union(() if params.ignore_eos else eos_token_ids)
        self.index, self.stream, self.want_prompt_logits = index, stream, want_prompt_logits
        self.ends_with_pool = ends_with_pool or params.max_tokens is None
        self.max_len = 0  # tokens at which it ends with "length"; set by the scheduler when it is added

        self.status = Status.WAITING
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None  # why it ended with "error"
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0  # found in the prefix cache when it was first admitted
        self.num_preemptions = 0
        self.block_table: list[int] = []
        self.block_hashes: list[bytes] = []  # of the leading full blocks; never outdated, tokens are only appended
        self.num_registered_blocks = 0  # leading blocks of the table offered to the prefix cache

        self.random: Random | None = None
        self.detokenizer: Detokenizer | None = None
        self.logprobs: list[TokenLogprobs] | None = [] if params.wants_logprobs else None
        # Of the leading prompt tokens; a token's logits give the next one's, so all are known before the last is run.
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None if params.prompt_logprobs is None else [None]
        self.prompt_logits: list[Tensor] = []  # [rows, V] float32 each, in prompt order, together all the prompt

        self.arrival_s = perf_counter()
        self.scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self.finished_s: float | None = None

    def append(self, token: int) -> None:
        """Take a new token, the next of the output."""
        self.token_ids.append(token)
        for processor in self.processors:
            processor.accept(token)

    @property
    def scores_prompt(self) -> bool:
        """True while the logits of all the tokens that it computes are wanted; then it has prompt tokens only.

        Nothing is taken from the prefix cache as long, which has no logits.
        """
        return self.want_prompt_logits or not self.knows_prompt

    @property
    def knows_prompt(self) -> bool:
        """True when no log-probability of a prompt token is missing that was asked for."""
        return self.prompt_logprobs is None or len(self.prompt_logprobs) == self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        """The new tokens, EOS and stop tokens included."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def text_token_ids(self) -> list[int]:
        """The new tokens that are part of the text: a closing EOS or stop token is not."""
        hidden = len(self.token_ids) > self.num_prompt_tokens and self.token_ids[-1] in self.stop_ids
        return self.token_ids[self.num_prompt_tokens : -1 if hidden else None]

    def output(self) -> RequestOutput:
        """What the request has given so far; takes the text that was not given out yet as its delta."""
        return RequestOutput(
            index=self.index,
            prompt_token_ids=self.prompt_token_ids,
            token_ids=self.output_token_ids,
            text="" if self.detokenizer is None else self.detokenizer.text,
            finish_reason=self.finish_reason,
            logprobs=None if self.logprobs is None else list(self.logprobs),
            prompt_logprobs=self.prompt_logprobs if self.knows_prompt else None,
            delta=self.detokenizer.take() if self.stream and self.detokenizer is not None else "",
            metrics=self._metrics(),
            error=self.error,
        )

    def _metrics(self) -> dict[str, float]:
        moments = {"queue_s": self.scheduled_s, "first_token_s": self.first_token_s, "total_s": self.finished_s}
        metrics = {name: moment - self.arrival_s for name, moment in moments.items() if moment is not None}
        return metrics | {
            "prompt_tokens": self.num_prompt_tokens,
            "generated_tokens": len(self.token_ids) - self.num_prompt_tokens,
            "cached_tokens": self.num_cached_tokens,
            "preemptions": self.num_preemptions,
        }
