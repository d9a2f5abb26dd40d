"""What shapes a sequence's logits before its token is chosen. Shapes: B rows, V vocabulary."""

from __future__ import annotations

from collections import abc
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from atb_models.engine.sampling.logit_bias import LogitBias
from atb_models.engine.sampling.penalties import Penalties
from atb_models.sampling_params import SamplingParams

if TYPE_CHECKING:
    from typing_extensions import Self


class LogitsProcessor(Protocol):
    """The state of one sequence. It is made with the sequence, kept by it, and goes when it goes.

    `accept` is called once for each token that the sequence gets, in order, and never again for a token that is only
    recomputed; so preemption, chunked prefill and the prefix cache do not concern a processor. `apply` may be called
    any number of times between two tokens, so it must not advance the state.

    A further kind is a class with these three methods, and a place in KINDS. A grammar, for example, comes last, so
    that nothing can lift what it forbids. Its state is a matcher, made in `of` from a grammar that was compiled
    before (compiling takes long and must not hold up the steps of others); `accept` advances the matcher; `apply` lets
    each matcher fill the allowed ids of its row into one bit mask on the host, moves the masks to the device together,
    and writes -inf to the logits of all other ids.
    """

    @classmethod
    def of(cls, params: SamplingParams, prompt_token_ids: abc.Sequence[int]) -> Self | None:
        """The processor of a sequence with these parameters; None where they do not ask for it."""

    def accept(self, token: int) -> None:
        """The sequence has got this token."""

    @classmethod
    def apply(cls, logits_BV: Tensor, rows: abc.Sequence[int], processors: abc.Sequence[Self]) -> None:
        """Change, in place, the rows of the logits that belong to these processors, one each.

        All rows at once, for a call per row costs a batch more than the work itself; but no row may depend on others.
        """


# In the order in which logits pass through them, see SamplingParams.
KINDS: tuple[type[LogitsProcessor], ...] = (Penalties, LogitBias)


def make_processors(params: SamplingParams, prompt_token_ids: abc.Sequence[int]) -> tuple[LogitsProcessor, ...]:
    """The processors that a sequence with these parameters needs."""
    made = (kind.of(params, prompt_token_ids) for kind in KINDS)
    return tuple(processor for processor in made if processor is not None)


def process(logits_BV: Tensor, processors: abc.Sequence[abc.Sequence[LogitsProcessor]]) -> Tensor:
    """The logits after the processors of each row: a copy, or the same tensor where no row has any."""
    processed_BV = logits_BV
    for kind in KINDS:
        found = [(row, one) for row, of_row in enumerate(processors) for one in of_row if type(one) is kind]
        if found:
            if processed_BV is logits_BV:
                processed_BV = logits_BV.clone(memory_format=torch.contiguous_format)
            rows, ones = zip(*found, strict=True)
            kind.apply(processed_BV, rows, ones)
    return processed_BV
