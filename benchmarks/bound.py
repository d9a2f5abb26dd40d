"""The times that the plan predicts for this CPU against measured ones, at a real model's width with few layers.

    python benchmarks/bound.py --model_path <folder with the model's config.json> [--layers 4] [--tp 1] [--dtype fp16]
        [--quantize w8a16] [--kv_dtype int8]

Random weights. Each step runs several times on all ranks; the fastest counts. The prediction is a bound from below, so
exit status 1 if a measured time is shorter. The processor is measured before and after the steps; the faster counts.
"""

from __future__ import annotations

import sys
import time

from ranks import few_layers, message, run_ranks

from atb_models import ops
from atb_models.engine.config import EngineConfig
from atb_models.engine.model_runner import ModelRunner
from atb_models.limits import BLOCK_SIZE
from atb_models.machine.cores import available_cores
from atb_models.models.dtypes import kv_torch_dtype, torch_dtype
from atb_models.ops.top_logits import greedy_logits
from atb_models.plan.this_cpu import measure_cpu
from atb_models.plan.times import Step, StepCosts, price
from atb_models.ranks.group import RankGroup

CONTEXT = 128
STEPS = {
    "prefill of 256": Step((256,), (256,), 1),
    "decode of 1 row": Step((1,), (CONTEXT,), 1),
    "decode of 16 rows": Step((1,) * 16, (CONTEXT,) * 16, 16),
}
RUNS = 4


def main() -> int:
    config = few_layers(__doc__, kv_blocks=16)
    before = measure_cpu(available_cores())
    measured = [max(seconds) for seconds in zip(*run_ranks(config, __file__), strict=True)]
    chips = before, measure_cpu(available_cores())
    ops.bind("cpu")
    read = config.load_model_config()
    dtype, kv_dtype = torch_dtype(read.run_dtype(config.dtype)), kv_torch_dtype(config.kv_dtype)
    costs = StepCosts(read, dtype, config.tp, config.quantize, kv_dtype)
    below = False
    for (name, step), seconds in zip(STEPS.items(), measured, strict=True):
        bound = min(price(costs.works(step), chip, config.tp).total for chip in chips)
        below |= seconds < bound
        print(
            f"{name}, tp {config.tp}: at least {bound * 1e3:.1f} ms, measured {seconds * 1e3:.1f} ms,"
            f" {bound / seconds:.0%} of the roofline"
        )
    return int(below)


def run_rank(config: EngineConfig, group: RankGroup) -> list[float]:
    """The fastest of the runs of each step, seconds."""
    runner = ModelRunner(config, config.load_model_config(), group, config.kv_blocks or 0)
    fastest = []
    for step in STEPS.values():
        assert max(step.kv_lens) * len(step.kv_lens) <= 16 * BLOCK_SIZE
        sent, seconds = message(list(step.query_lens), list(step.kv_lens), top_logits=greedy_logits()), []
        for _ in range(RUNS):
            group.barrier("measuring")
            started = time.perf_counter()
            runner.execute(sent)
            seconds.append(time.perf_counter() - started)
        fastest.append(min(seconds))
    return fastest


if __name__ == "__main__":
    sys.exit(main())
