"""--print_graph: what a prefill step and a decode step of a rank do, as text, JSON, Graphviz or a drawing."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atb_models.files import check_file, written_whole
from atb_models.models.dtypes import kv_torch_dtype, torch_dtype
from atb_models.models.label import model_label

if TYPE_CHECKING:
    from atb_models.graph import OpGraph
    from atb_models.launcher.subject import Subject

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GraphOptions:
    """The flags of these names."""

    format: str  # text, json or dot
    svg: str | None
    all_layers: bool
    max_output_length: int


def print_graph(subject: Subject, options: GraphOptions) -> None:
    """Print both graphs of rank 0 in --format, and draw them to --svg.

    Raises ConfigError for ranks that cannot share the model and a file that cannot be written.
    """
    from atb_models.graph.dot import dot
    from atb_models.graph.svg import svg
    from atb_models.graph.text import text

    if options.svg is not None:
        check_file(Path(options.svg), "--svg")
    model = model_label(subject.folder)
    graphs = trace_steps(subject, options.max_output_length)
    if options.format == "json":
        print(json.dumps({"model": model} | {name: graph.to_json() for name, graph in graphs.items()}))
    elif options.format == "dot":
        print(dot(graphs, model, all_layers=options.all_layers), end="")
    else:
        print(text(graphs, model, all_layers=options.all_layers), end="")
    if options.svg is not None:
        with written_whole(Path(options.svg)) as file:
            file.write_text(svg(graphs, model, all_layers=options.all_layers), encoding="utf-8")
        logger.info("the graphs are drawn in %s", options.svg)


def trace_steps(subject: Subject, output_length: int) -> dict[str, OpGraph]:
    """Rank 0's graphs "prefill" and "decode", of greedy steps."""
    from atb_models.graph import meta_caches, meta_model, meta_step, trace
    from atb_models.ops.top_logits import greedy_logits

    kv_dtype = kv_torch_dtype(subject.kv_dtype)
    model = meta_model(
        subject.model, torch_dtype(subject.dtype), subject.tp, quantize=subject.quantize, kv_dtype=kv_dtype
    )
    block_size = subject.limits.block_size
    graphs = {}
    for name, (query_lens, kv_lens) in step_lengths(subject, output_length).items():
        blocks = sum(-(-length // block_size) for length in kv_lens)
        step = meta_step(query_lens, kv_lens, block_size, top_logits=greedy_logits())
        graphs[name] = trace(model, step, meta_caches(model, blocks, block_size))
    return graphs


def step_lengths(subject: Subject, output_length: int) -> dict[str, tuple[list[int], list[int]]]:
    """Query and KV lengths: as many prompts as a step's budget holds, one being cut to it; a full batch that generates.

    The latter is in the middle of its answers, or at the end of the positions where those are too few.
    """
    limits = subject.limits
    prompt = min(subject.input_length, limits.max_prefill_tokens, limits.max_seq_len)
    prompts = [prompt] * min(limits.max_batch_size, limits.max_prefill_tokens // prompt)
    kept = min(subject.input_length + (output_length + 1) // 2, limits.max_seq_len)
    batch = limits.max_batch_size
    return {"prefill": (prompts, prompts), "decode": ([1] * batch, [kept] * batch)}
