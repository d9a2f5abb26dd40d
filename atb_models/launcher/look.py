"""--plan and --print_graph: what a run would be, from config.json alone."""

from __future__ import annotations

import argparse
from dataclasses import replace

from atb_models import env
from atb_models.command.address_space import LOOK_BYTES, check_address_space
from atb_models.command.interrupt import interrupt_ends_at_once
from atb_models.command.parser import typed
from atb_models.engine.config import EngineConfig
from atb_models.launcher.prepare import asked_engine
from atb_models.launcher.subject import Subject
from atb_models.machine.imports import import_torch_for_good
from atb_models.models.config import ModelConfig


def look(args: argparse.Namespace, tp: int) -> None:
    """Print the plan or the graphs for `tp` ranks; under torchrun rank 0 does. May raise AtbError."""
    if env.get("RANK"):
        return
    check_address_space(LOOK_BYTES, "--plan" if args.plan else "--print_graph")
    with interrupt_ends_at_once(), import_torch_for_good():
        subject = _subject(*asked_engine(args), tp)
    if args.plan:
        from atb_models.launcher.look_plan import PlanOptions, print_plan

        print_plan(subject, typed(args, PlanOptions))
    else:
        from atb_models.launcher.look_graph import GraphOptions, print_graph

        print_graph(subject, typed(args, GraphOptions))


def _subject(config: EngineConfig, model: ModelConfig, length: int, tp: int) -> Subject:
    from atb_models import ops
    from atb_models.engine.graph_capture import decide_capture
    from atb_models.engine.kv_pool import engine_limits
    from atb_models.machine.device import choose_device

    device = choose_device(config.device)
    ops.bind(device)
    return Subject(
        model=model,
        folder=str(config.folder),
        dtype=model.run_dtype(config.dtype),
        tp=tp,
        device=device,
        limits=replace(engine_limits(config, model), graph_capture=decide_capture(config.graph_capture, device)),
        input_length=length,
        kv_blocks=config.kv_blocks,
        quantize=config.quantize,
        kv_dtype=config.kv_dtype,
    )
