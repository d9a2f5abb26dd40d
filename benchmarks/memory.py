"""The planned peak of a rank's memory against the measured one, at a real model's width with few layers.

    python benchmarks/memory.py --model_path <folder with the model's config.json> [--layers 4] [--tp 1] [--dtype fp16]

Random weights. Each rank decodes a batch and prefills a prompt. Measured for each of the two is VmHWM beyond what the
process held before the model; planned are the weights, the KV tokens that are written, the recorded graph's peak and
what torch's libraries take at run time. Exit status 1 if a plan is off by more than 10 %.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from atb_models import ops
from atb_models.engine.config import EngineConfig
from atb_models.engine.memory import RUNTIME_BYTES
from atb_models.engine.message import Int32
from atb_models.engine.model_runner import ModelRunner
from atb_models.engine.ranks import RankGroup
from atb_models.engine.spawn import spawn
from atb_models.graph import OpGraph, meta_caches, meta_model, meta_step
from atb_models.models.dtypes import torch_dtype
from atb_models.plan.memory import kv_bytes_per_token, weight_bytes

BLOCK_SIZE, PROMPT, BATCH, CONTEXT = 128, 1024, 16, 100
STEPS = {"decode of 16 rows": ([1] * BATCH, [CONTEXT + 1] * BATCH), "prefill of 1024": ([PROMPT], [PROMPT])}
TOLERANCE = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--dtype", choices=("fp16", "bf16", "fp32"), default="fp16")
    args = parser.parse_args()
    config = EngineConfig(
        args.model_path,
        dtype=args.dtype,
        tp=args.tp,
        load_format="dummy",
        kv_blocks=BATCH + PROMPT // BLOCK_SIZE,
        config_overrides={"num_hidden_layers": args.layers},
    )
    planned = plan(config)
    off = False
    for rank, measured in enumerate(measure(config)):
        for (name, plan_bytes), bytes_ in zip(planned.items(), measured, strict=True):
            ratio = bytes_ / plan_bytes
            off |= abs(ratio - 1) > TOLERANCE
            print(f"rank {rank}, {name}: planned {mib(plan_bytes)}, measured {mib(bytes_)}, ratio {ratio:.3f}")
    return int(off)


def plan(config: EngineConfig) -> dict[str, int]:
    """Bytes of a rank at the peak of each step, from config.json alone."""
    ops.bind("cpu")
    model = meta_model(config.load_model_config(), torch_dtype(config.dtype), config.tp)
    held, written = weight_bytes(model) + RUNTIME_BYTES, 0
    planned = {}
    for name, (query_lens, kv_lens) in STEPS.items():
        blocks = sum(-(-length // BLOCK_SIZE) for length in kv_lens)
        step = meta_step(query_lens, kv_lens, BLOCK_SIZE)
        graph = OpGraph.trace(model, step, meta_caches(model, blocks, BLOCK_SIZE))
        written += sum(kv_lens)
        planned[name] = held + written * kv_bytes_per_token(model) + graph.peak_activation_bytes
    return planned


def measure(config: EngineConfig) -> list[list[int]]:
    """Bytes of each rank, for each step."""
    with tempfile.TemporaryDirectory() as reports:
        # The ranks find this file's run_rank by the module's name; spawn adds the project's root.
        os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent)
        payload = json.dumps([reports, config.to_json()])
        with spawn(config.tp, "cpu", payload, f"{Path(__file__).stem}:run_rank") as group:
            run_rank(payload, group)
            group.barrier("measuring")
        return [json.loads(path.read_text()) for path in sorted(Path(reports).iterdir())]


def run_rank(payload: str, group: RankGroup) -> None:
    """What every rank runs: the model, the context of the decode batch, then each step, measured by itself."""
    reports, text = json.loads(payload)
    config = EngineConfig.from_json(text)
    before = resident("VmRSS")
    runner = ModelRunner(config, config.load_model_config(), group, config.kv_blocks or 0)
    for row in range(BATCH):
        runner.execute(message([CONTEXT], [CONTEXT], first_block=row))
    peaks = []
    for name, first_block in zip(STEPS, (0, BATCH), strict=True):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        runner.execute(message(*STEPS[name], first_block=first_block))
        peaks.append(resident("VmHWM") - before)
    Path(reports, f"{group.rank:03d}").write_text(json.dumps(peaks))
    if group.rank != 0:
        group.barrier("measuring")


def message(query_lens: list[int], kv_lens: list[int], first_block: int) -> Int32:
    """A step of random tokens whose sequences have their blocks one after the other (see engine/message.py)."""
    batch, columns = len(query_lens), max(-(-length // BLOCK_SIZE) for length in kv_lens)
    table = first_block + np.arange(batch * columns)
    tokens = np.random.default_rng(0).integers(0, 1000, sum(query_lens))
    header = [batch, columns, sum(query_lens), *query_lens, *kv_lens, *[1] * batch]
    return np.concatenate([header, table, tokens]).astype(np.int32)


def resident(field: str) -> int:
    """A field of /proc/self/status, bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
