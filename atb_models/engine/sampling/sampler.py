"""The next token of every row from its logits. Float32 throughout; shapes: B rows, V vocabulary, W candidates."""

from __future__ import annotations

from collections import abc
from itertools import compress

import numpy as np
import torch
from torch import Tensor

from atb_models.engine.sampling.draws import (
    CANDIDATES,
    column,
    draw_of_few,
    invert,
    is_of_few,
    running_sums,
    temperatures,
    uniform_numbers,
)
from atb_models.engine.sampling.logprobs import finite_only, token_logprobs
from atb_models.engine.sampling.processors import process
from atb_models.engine.sequence import Sequence
from atb_models.ops.top_logits import merged, top_logits
from atb_models.outputs import TokenLogprobs

# Candidates that are sorted first for a top_p without top_k; so many times more while their mass falls short.
FIRST_CANDIDATES, MORE_CANDIDATES = 256, 16
NO_TOKEN = -1  # in place of a token where not one logit of a row is a finite number
# Told of the rows with such logits: how many of their logits are no finite numbers, and how many these rows have.
OnNoNumber = abc.Callable[[int, int], None]


@torch.inference_mode()
def sample(
    logits_BV: Tensor,
    seqs: abc.Sequence[Sequence],
    on_no_number: OnNoNumber | None = None,
) -> tuple[list[int], list[TokenLogprobs | None] | None]:
    """Choose one token per row of float32 logits; log-probabilities (None if nobody wants any) of the raw logits.

    A row's token depends on its own logits, parameters and random stream only, not on the rows beside it. Only tokens
    with a finite logit are chosen; a row without any gets `NO_TOKEN` and no log-probabilities.
    on_no_number: called where rows have a logit of NaN or +infinity, or no finite one.
    """
    processed_BV = process(logits_BV, [seq.processors for seq in seqs])
    tokens_B = _most_probable(processed_BV)
    chosen_B = processed_BV.gather(1, tokens_B[:, None]).squeeze(1)
    # NaN and +infinity are what argmax takes first, so that a finite choice tells that a row has neither. Both come to
    # the host in one copy, for each copy from a device waits for it: a token t of a bad row is -1 - t there.
    marked = torch.where(chosen_B.isfinite(), tokens_B, -1 - tokens_B).tolist()
    bad = [row for row, token in enumerate(marked) if token < 0]
    empty: set[int] = set()
    if bad:
        processed_BV, empty = _numbers_only(processed_BV, bad, tokens_B)
        if on_no_number is not None:
            bad_NV = logits_BV[bad]
            on_no_number(int((~bad_NV.isfinite()).sum()), bad_NV.numel())
    drawn = [row for row, seq in enumerate(seqs) if seq.params.temperature and row not in empty]
    if drawn:
        index = torch.tensor(drawn, device=logits_BV.device)
        drawn_BV = processed_BV[index]
        if logits_BV.device.type not in ("cpu", "cuda"):  # whose argmax may pass over what is no number
            drawn_BV = finite_only(drawn_BV)
        tokens_B[index] = _draw(drawn_BV, [seqs[row] for row in drawn])
    chosen = tokens_B.tolist() if bad or drawn else marked
    tokens = [NO_TOKEN if row in empty else token for row, token in enumerate(chosen)]
    return tokens, _logprobs(logits_BV, seqs, tokens)


def top_logits_wanted(seqs: abc.Iterable[Sequence]) -> int:
    """How many of the greatest logits of each row `sample_top` needs for these sequences; 0: it needs all."""
    wanted = 1
    for seq in seqs:
        if seq.is_plain_greedy:
            continue
        if not is_of_few(seq) or seq.processors or seq.params.wants_logprobs:
            return 0
        wanted = CANDIDATES
    return wanted


def sample_top(
    keys: Tensor, count: int, seqs: abc.Sequence[Sequence], vocab_size: int, on_no_number: OnNoNumber | None = None
) -> list[int]:
    """The tokens that `sample` chooses, from the keys of the `count` greatest logits (see `ops.top_logits`)."""
    top = merged(keys, count)
    tokens = top.best_ids(NO_TOKEN)
    if on_no_number is not None and (bad := top.bad_rows):
        on_no_number(int(top.not_finite_L[bad].sum()), len(bad) * vocab_size)
    drawn = [row for row, seq in enumerate(seqs) if seq.params.temperature and tokens[row] != NO_TOKEN]
    if drawn:
        chosen = draw_of_few(top.of(drawn), [seqs[row] for row in drawn])
        for row, token in zip(drawn, chosen, strict=True):
            tokens[row] = token
    return tokens


def _numbers_only(logits_BV: Tensor, bad: list[int], tokens_B: Tensor) -> tuple[Tensor, set[int]]:
    """A copy with -infinity for what is no finite number in the `bad` rows, and which of these have no finite number.

    Writes the most probable token of each bad row to tokens_B [B].
    """
    index = torch.tensor(bad, device=logits_BV.device)
    rows_NV = finite_only(logits_BV[index])
    tokens_B[index] = _most_probable(rows_NV)
    logits_BV = logits_BV.index_copy(0, index, rows_NV)
    return logits_BV, {bad[row] for row in (rows_NV.amax(-1) == -torch.inf).nonzero().squeeze(1).tolist()}


def _most_probable(logits_BV: Tensor) -> Tensor:
    """argmax; on a CPU numpy's, which takes 0.9 ms where torch's takes 6.6 ms for 64 rows of 102,400."""
    if logits_BV.device.type != "cpu":
        return logits_BV.argmax(-1)
    return torch.from_numpy(np.asarray(logits_BV.numpy().argmax(-1)))


def _draw(logits_BV: Tensor, seqs: abc.Sequence[Sequence]) -> Tensor:
    """One token per row of rows that are not greedy -> ids [B]. Logits are finite or -infinity, one finite at least."""
    few = [is_of_few(seq) for seq in seqs]
    if not any(few):
        return _draw_of_all(logits_BV, seqs)
    few_B = torch.tensor(few, device=logits_BV.device)
    few_NV = logits_BV if all(few) else logits_BV[few_B]
    top = merged(top_logits.reference(few_NV, CANDIDATES, 0), CANDIDATES)
    tokens_B = torch.empty(len(seqs), dtype=torch.int64, device=logits_BV.device)
    tokens_B[few_B] = torch.tensor(draw_of_few(top, list(compress(seqs, few))), device=logits_BV.device)
    if not all(few):
        others = [seq for seq, is_few in zip(seqs, few, strict=True) if not is_few]
        tokens_B[~few_B] = _draw_of_all(logits_BV[~few_B], others)
    return tokens_B


def _draw_of_all(logits_BV: Tensor, seqs: abc.Sequence[Sequence]) -> Tensor:
    """`_draw` by the probabilities of all tokens."""
    params = [seq.params for seq in seqs]
    # Subtracting the maximum first keeps any temperature, however small, from overflowing.
    temperature_B1 = temperatures(seqs, logits_BV)
    probs_BV = torch.softmax((logits_BV - logits_BV.amax(-1, keepdim=True)) / temperature_B1, -1)
    uniform_B1 = uniform_numbers(seqs, probs_BV)

    vocab_size = logits_BV.shape[1]
    top_k = [p.top_k if p.top_k and 0 < p.top_k < vocab_size else vocab_size for p in params]
    top_p, min_p = [p.top_p or 1.0 for p in params], [p.min_p or 0.0 for p in params]
    cut = [k < vocab_size or p < 1 for k, p in zip(top_k, top_p, strict=True)]
    if not any(cut):
        return invert(probs_BV, min_p, uniform_B1)
    # Cut rows are drawn among their candidates, the others among all ids: a row's own parameters decide which.
    cut_B = torch.tensor(cut, device=probs_BV.device)
    ids_BW, probs_BW = _top_k_top_p(probs_BV[cut_B], list(compress(top_k, cut)), list(compress(top_p, cut)))
    places_B = invert(probs_BW, list(compress(min_p, cut)), uniform_B1[cut_B])
    tokens_B = torch.empty(len(seqs), dtype=torch.int64, device=probs_BV.device)
    tokens_B[cut_B] = ids_BW.gather(1, places_B[:, None]).squeeze(1)
    if not all(cut):
        whole = [not is_cut for is_cut in cut]
        tokens_B[~cut_B] = invert(probs_BV[~cut_B], list(compress(min_p, whole)), uniform_B1[~cut_B])
    return tokens_B


def _top_k_top_p(probs_BV: Tensor, top_k: list[int], top_p: list[float]) -> tuple[Tensor, Tensor]:
    """The W most probable tokens of each row, most probable first, and their probabilities, 0 where they are cut off.

    Equal tokens are ordered by id, so that the choice is unique. top_k: 1 to V each; W: enough for all rows.
    """
    vocab_size, device = probs_BV.shape[1], probs_BV.device
    # The bits of non-negative floats are ordered as they are: with the id below them, a key without ties.
    reverse_ids_V = torch.arange(vocab_size - 1, -1, -1, device=device)
    key_BV = probs_BV.view(torch.int32).to(torch.int64).bitwise_left_shift_(32).bitwise_or_(reverse_ids_V)
    k_B1 = torch.tensor(top_k, device=device)[:, None]
    p_B1 = column(top_p, probs_BV)

    width = min(vocab_size, max(k if k < vocab_size else FIRST_CANDIDATES for k in top_k))
    while True:
        ids_BW = vocab_size - 1 - (key_BV.topk(width, sorted=True).values & 0xFFFFFFFF)
        probs_BW = probs_BV.gather(1, ids_BW)
        mass_BW = running_sums(probs_BW)
        short_B1 = (k_B1 == vocab_size) & (mass_BW[:, -1:] < p_B1)
        if width == vocab_size or not short_B1.any():
            break
        width = min(vocab_size, width * MORE_CANDIDATES)
    mass_of_k_B1 = mass_BW.gather(1, (k_B1 - 1).clamp(max=width - 1))
    total_B1 = torch.where(k_B1 < vocab_size, mass_of_k_B1, torch.ones_like(p_B1))
    before_BW = torch.nn.functional.pad(mass_BW[:, :-1], (1, 0))
    place_W = torch.arange(width, device=device)
    # The first stays, whatever becomes of a tiny top_p in float32.
    kept_BW = (place_W < k_B1) & ((before_BW < p_B1 * total_B1) | (place_W == 0))
    return ids_BW, probs_BW * kept_BW


def _logprobs(logits_BV: Tensor, seqs: abc.Sequence[Sequence], tokens: list[int]) -> list[TokenLogprobs | None] | None:
    """What `token_logprobs` says of the chosen tokens; None for rows that want none, or where no row wants any."""
    rows = [row for row, seq in enumerate(seqs) if seq.logprobs is not None and tokens[row] != NO_TOKEN]
    if not rows:
        return None
    params = [seqs[row].params for row in rows]
    known = token_logprobs(
        logits_BV[torch.tensor(rows, device=logits_BV.device)],
        [tokens[row] for row in rows],
        [p.logprobs or 0 for p in params],
        [p.logprob_ids for p in params],
    )
    result: list[TokenLogprobs | None] = [None] * len(seqs)
    for row, one in zip(rows, known, strict=True):
        result[row] = one
    return result
