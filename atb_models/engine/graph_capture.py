"""Decode steps as captured graphs of the device: one for each of a few batch sizes, launched as a whole.

An eager step launches some hundred operators one by one, and with one token a row the device waits for the host. A
graph is captured once, at the start, and replayed with the same memory: every step's integers are copied to where the
graph reads them, and rows are added to those that are too few. Attention takes its lengths on the host, so they are a
part of what was captured; torch_npu keeps a handle of each such call and gives it new ones (`NPUGraph.update`). The
replay waits on the device for each of them, so its first layers run while the host still updates the last. Before the
next step rank 0 has read this one's tokens, and with them every rank has got through all of its attention: nothing is
updated that still runs.

Structure and answers are tested on a pretend device (tests/npu); it has not run on hardware.
"""

from __future__ import annotations

import inspect
import logging
import sys
from bisect import bisect_left
from importlib import import_module
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from atb_models import env
from atb_models.engine.message import HEADER, HostStep, Int32, host_step, padded, sendable
from atb_models.errors import AtbError, ConfigError
from atb_models.limits import graph_sizes
from atb_models.machine.device import device_module
from atb_models.models.decoder import Decoder
from atb_models.ops.kv_cache import LayerCache
from atb_models.ranks.group import RankGroup

logger = logging.getLogger(__name__)

ATTENTION = "npu_fused_infer_attention_score.default"
COUNTING = "MINDIE_ENABLE_EXPERT_HOTPOT_GATHER"


def decide_capture(wanted: bool | None, device: str) -> bool:
    """Whether decode steps are captured on this type of device; raises ConfigError where that is wanted in vain."""
    obstacle = None if wanted is False else _obstacle(device)
    if obstacle is not None and wanted:
        raise ConfigError(f"graph_capture: {obstacle}, or do not ask for it")
    if obstacle is not None and device == "npu" and not env.get("RANK"):
        logger.info("decode steps are not captured as graphs: %s", obstacle)
    return wanted is not False and obstacle is None


def _obstacle(device: str) -> str | None:
    """Why nothing can be captured, and what to do."""
    if device != "npu":
        return f"device {device} captures no graphs; use --device npu"
    if env.get(COUNTING):
        return f"{COUNTING} counts in every step, which a graph does not; unset it"
    if env.get("TASK_QUEUE_ENABLE") == "2":
        return "torch_npu captures nothing with TASK_QUEUE_ENABLE=2; set it to 1"
    if env.get("ASCEND_LAUNCH_BLOCKING") == "1":
        return "ASCEND_LAUNCH_BLOCKING=1 waits for each operator, which no capture allows; unset it"
    npu = device_module("npu")
    if not hasattr(npu, "NPUGraph") or "auto_dispatch_capture" not in inspect.signature(npu.graph).parameters:
        return "this torch_npu has no NPUGraph with updates; install 2.13.0"
    try:
        handlers = import_module("torch_npu.npu._npugraph_handlers.npugraph_handler")._NPU_GRAPH_OP_HANDLERS
    except (ImportError, AttributeError):
        handlers = {}
    return None if ATTENTION in handlers else f"this torch_npu does not update {ATTENTION} in graphs; install 2.13.0"


def check_agreement(captures: bool, group: RankGroup) -> None:
    """Raises ConfigError on every rank where not all have decided the same: torchrun's ranks decide each for itself."""
    with group.doing("agreeing on graph capture"):
        same = group.minimum(int(captures)) == -group.minimum(-int(captures))
    if not same:
        raise ConfigError(
            "graph_capture: some ranks capture graphs and some do not; give all hosts the same torch_npu and variables,"
            " or use --no_graph_capture"
        )


class _Captured(NamedTuple):
    graph: Any  # torch.npu.NPUGraph
    logits_BV: Tensor


class DecodeGraphs:
    """The graphs of one rank. All ranks capture and replay the same ones in the same order: collectives are in them.

    columns: blocks in the longest block table. spare: the last block of the caches, which no sequence is ever given.
    """

    def __init__(self, model: Decoder, caches: list[LayerCache], columns: int, block_size: int, spare: int) -> None:
        self.model, self.caches = model, caches
        self.columns, self.block_size, self.spare = columns, block_size, spare
        self._graphs: dict[int, _Captured] = {}  # by batch size, in rising order

    @torch.inference_mode()
    def capture(self, most: int, *, log: bool) -> None:
        """Capture steps of up to `most` rows, the largest first: the others fit into its memory.

        `most` is not more than there are blocks, and no sequence has any yet. Raises AtbError where the device cannot.
        """
        started, outer = perf_counter(), sys.exc_info()[1]
        sizes = graph_sizes(most, self.block_size)
        steps = [self._step(np.zeros(HEADER, dtype=np.int32), size) for size in sizes]
        self._ints = torch.zeros(steps[-1].ints.size, dtype=torch.int32, device=self.model.embed.weight.device)
        pool = device_module("npu").graph_pool_handle()
        try:
            captured = [self._captured(step, pool) for step in reversed(steps)]
        except RuntimeError as error:
            cause = _first_error(error, outer)
            if not isinstance(cause, Exception):
                raise cause from None
            problem = str(cause).strip().partition("\n")[0] or type(cause).__name__
            raise AtbError(f"decode steps cannot be captured as graphs: {problem}; use --no_graph_capture") from error
        self._graphs = dict(zip(sizes, reversed(captured), strict=True))
        if log:
            rows = ", ".join(map(str, sizes))
            logger.info("decode steps of %s rows captured as graphs in %.1f s", rows, perf_counter() - started)

    def run(self, message: Int32) -> Tensor:
        """The logits [B, V] of a decode step; the next step overwrites them."""
        batch, sizes = int(message[0]), list(self._graphs)
        size = sizes[bisect_left(sizes, batch)]
        step, captured = self._step(message, size), self._graphs[size]
        self._send(step)
        captured.graph.replay()
        captured.graph.update(cpu_update_input=[{"actual_seq_lengths_kv": step.kv_lens}])
        return captured.logits_BV[:batch]

    def _captured(self, step: HostStep, pool: Any) -> _Captured:
        """The step is run once before, so that what is made at a first call is not made within the graph.

        What layers keep of a step is made in each: the graph must make it anew in every replay.
        """
        ints = self._send(step)
        self.model(step.on(ints), self.caches)
        npu = device_module("npu")
        graph = npu.NPUGraph()
        with npu.graph(graph, pool=pool, auto_dispatch_capture=True):
            logits_BV = self.model(step.on(ints), self.caches)
        return _Captured(graph, logits_BV)

    def _step(self, message: Int32, size: int) -> HostStep:
        return host_step(padded(message, size, self.columns, self.spare, self.block_size), self.block_size)

    def _send(self, step: HostStep) -> Tensor:
        """One copy to where the graphs read."""
        ints = self._ints[: step.ints.size]
        return ints.copy_(sendable(step.ints, ints.device), non_blocking=True)


def _first_error(error: BaseException, outer: BaseException | None) -> BaseException:
    """What broke the capture off, which may be Ctrl-C: when torch_npu then ends the capture, that fails as well.

    Python keeps the earlier error as the context of the later one. outer: an error that the caller was handling before
    the capture began; it is the context of the capture's first error and has nothing to do with it.
    """
    while error.__context__ is not None and error.__context__ is not outer:
        error = error.__context__
    return error
