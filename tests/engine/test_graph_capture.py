"""The host's half of graph capture: its sizes, what fills a step up, where it is refused, what it keeps."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from atb_models import ops
from atb_models.engine.graph_capture import check_agreement, decide_capture
from atb_models.engine.message import HEADER, decode_step, encode_step, host_step, is_decode, padded
from atb_models.errors import ConfigError
from atb_models.graph import meta_caches, meta_model, meta_step, trace
from atb_models.limits import Limits, graph_sizes
from atb_models.models.config_reader import load_model_config
from atb_models.plan.memory import one_of_each_layer, rank_memory
from atb_models.ranks.group import RankGroup, RankPlacement
from tests.engine.test_message import SIZE, row

CPU = torch.device("cpu")
DECODES = [row([10, 11, 12, 13, 14], [7, 2], 4, 1), row([20, 21], [5], 1, 1), row([30], [6], 0, 1)]
NOBODY = np.zeros(HEADER, dtype=np.int32)


@pytest.mark.parametrize(
    ("most", "block_size", "sizes"),
    [
        (1, 128, [1]),
        (6, 128, [1, 2, 4, 6]),
        (64, 128, [1, 2, 4, 8, 16, 32, 64]),
        (300, 128, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]),
        (12, 4, [1, 2, 4, 8, 12]),
    ],
)
def test_sizes(most: int, block_size: int, sizes: list[int]) -> None:
    assert graph_sizes(most, block_size) == sizes
    assert all(b - a <= block_size for a, b in pairwise(sizes))


@pytest.mark.parametrize(
    ("rows", "decode"),
    [
        (DECODES, True),
        ([*DECODES, row([1, 2, 3], [0], 0, 3)], False),
        ([row([1, 2, 3], [0], 0, 1)], False),  # a chunk of one token, of which nobody wants the logits
        ([row([1, 2, 3], [0], 0, 2, want_all=True)], False),
    ],
)
def test_which_steps_decode(rows: list, decode: bool) -> None:
    assert is_decode(encode_step(rows)) is decode


def test_added_rows_change_nothing_for_the_others() -> None:
    message = encode_step(DECODES)
    alone = decode_step(message, SIZE, CPU)
    step = decode_step(padded(message, 6, 3, 9, SIZE), SIZE, CPU)
    assert step.query_lens == [1] * 6
    assert step.kv_lens == [5, 2, 1, 1, 2, 3]  # those of a sequence's first tokens, in block 9
    assert step.slots_T.tolist() == [*alone.slots_T.tolist(), 36, 37, 38]
    assert step.block_table_BC.tolist() == [[7, 2, 0], [5, 0, 0], [6, 0, 0], [9, 0, 0], [9, 0, 0], [9, 0, 0]]
    assert step.token_ids_T[:3].equal(alone.token_ids_T) and step.positions_T.tolist() == [4, 1, 0, 0, 1, 2]
    assert step.logits_rows_L.tolist() == [0, 1, 2, 3, 4, 5]


def test_rows_of_nobody_have_slots_of_their_own() -> None:
    """In the spare block, then in those below it: as many as there are rows."""
    step = decode_step(padded(NOBODY, 10, 1, 3, SIZE), SIZE, CPU)
    assert sorted(step.slots_T.tolist()) == sorted({*range(12, 16), *range(8, 12), 4, 5})
    assert max(step.kv_lens) == SIZE


def test_a_size_has_one_layout() -> None:
    """A graph reads each of its inputs where it was captured."""
    captured, later = (host_step(padded(message, 4, 2, 9, SIZE), SIZE) for message in (NOBODY, encode_step(DECODES)))
    assert captured.sizes == later.sizes == [4, 4, 4, 5, 4, 4, 8]


def test_where_it_is_refused() -> None:
    assert not decide_capture(None, "cpu") and not decide_capture(False, "cpu")
    with pytest.raises(ConfigError, match="^graph_capture: device cuda captures no graphs; use --device npu"):
        decide_capture(True, "cuda")


@pytest.mark.parametrize("captures", [True, False])
def test_ranks_that_differ_are_told(captures: bool) -> None:
    def with_another(other: bool) -> RankGroup:
        its = iter(([int(other)], [-int(other)]))
        host: Any = SimpleNamespace(all_gather=lambda x: torch.cat([x, torch.tensor(next(its))]), send=lambda _: None)
        return RankGroup(RankPlacement(0, 2, 0, 1, "npu"), CPU, host)

    with with_another(captures) as equal, with_another(not captures) as different:
        check_agreement(captures, equal)
        with pytest.raises(
            ConfigError, match="^graph_capture: some ranks capture graphs and some do not; .*--no_graph"
        ):
            check_agreement(captures, different)


def test_what_it_is_planned_to_keep(demo: Path) -> None:
    """Another decode step's activations, the logits of each size, a KV block."""
    ops.bind("cpu")
    config = load_model_config(demo, log=False)
    limits = Limits(max_batch_size=6, max_prefill_tokens=64, max_seq_len=100, block_size=16)
    plain = rank_memory(config, torch.float16, 1, limits)
    memory = rank_memory(config, torch.float16, 1, replace(limits, graph_capture=True))
    model = meta_model(one_of_each_layer(config), torch.float16, 1)
    step = meta_step([1] * 6, [100] * 6, 16)
    peak = trace(model, step, meta_caches(model, 6 * 7, 16)).peak_activation_bytes
    logits = (1 + 2 + 4 + 6) * config.vocab_size * 4
    assert memory.activations - plain.activations == peak + logits + plain.kv_block
    assert memory.kv_blocks(1 << 30) < plain.kv_blocks(1 << 30)
