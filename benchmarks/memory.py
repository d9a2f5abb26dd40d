"""The planned peak of a rank's memory against the measured one, at a real model's width with few layers.

    python benchmarks/memory.py --model_path <folder with the model's config.json> [--layers 4] [--tp 1] [--dtype fp16]
        [--quantize w8a16] [--kv_dtype int8]

Random weights. Each rank decodes a batch and prefills a prompt. Measured for each of the two is VmHWM beyond what the
process held before the model; planned are the weights, the KV tokens that are written, the recorded graph's peak and
what torch's libraries take at run time. Exit status 1 if a plan is off by more than 10 %.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ranks import few_layers, message, run_ranks

from atb_models import ops
from atb_models.engine.config import EngineConfig
from atb_models.engine.model_runner import ModelRunner
from atb_models.graph import meta_caches, meta_model, meta_step, trace
from atb_models.limits import BLOCK_SIZE
from atb_models.machine.memory import RUNTIME_BYTES
from atb_models.models.dtypes import kv_torch_dtype, torch_dtype
from atb_models.plan.memory import kv_bytes_per_token, weight_bytes
from atb_models.ranks.group import RankGroup

PROMPT, BATCH, CONTEXT = 1024, 16, 100
STEPS = {"decode of 16 rows": ([1] * BATCH, [CONTEXT + 1] * BATCH), "prefill of 1024": ([PROMPT], [PROMPT])}
TOLERANCE = 0.1


def main() -> int:
    config = few_layers(__doc__, kv_blocks=BATCH + PROMPT // BLOCK_SIZE)
    planned = plan(config)
    off = False
    for rank, measured in enumerate(run_ranks(config, __file__)):
        for (name, plan_bytes), bytes_ in zip(planned.items(), measured, strict=True):
            ratio = bytes_ / plan_bytes
            off |= abs(ratio - 1) > TOLERANCE
            print(f"rank {rank}, {name}: planned {mib(plan_bytes)}, measured {mib(bytes_)}, ratio {ratio:.3f}")
    return int(off)


def plan(config: EngineConfig) -> dict[str, int]:
    """Bytes of a rank at the peak of each step, from config.json alone."""
    ops.bind("cpu")
    read = config.load_model_config()
    dtype, kv_dtype = torch_dtype(read.run_dtype(config.dtype)), kv_torch_dtype(config.kv_dtype)
    model = meta_model(read, dtype, config.tp, quantize=config.quantize, kv_dtype=kv_dtype)
    held, written = weight_bytes(model) + RUNTIME_BYTES, 0
    planned = {}
    for name, (query_lens, kv_lens) in STEPS.items():
        blocks = sum(-(-length // BLOCK_SIZE) for length in kv_lens)
        step = meta_step(query_lens, kv_lens, BLOCK_SIZE)
        graph = trace(model, step, meta_caches(model, blocks, BLOCK_SIZE))
        written += sum(kv_lens)
        planned[name] = held + written * kv_bytes_per_token(model.layers) + graph.peak_activation_bytes
    return planned


def run_rank(config: EngineConfig, group: RankGroup) -> list[int]:
    """The model, the context of the decode batch, then each step -> its peak beyond what was there before."""
    before = resident("VmRSS")
    runner = ModelRunner(config, config.load_model_config(), group, config.kv_blocks or 0)
    for row in range(BATCH):
        runner.execute(message([CONTEXT], [CONTEXT], first_block=row))
    peaks = []
    for name, first_block in zip(STEPS, (0, BATCH), strict=True):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        runner.execute(message(*STEPS[name], first_block=first_block))
        peaks.append(resident("VmHWM") - before)
    return peaks


def resident(field: str) -> int:
    """A field of /proc/self/status, bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
