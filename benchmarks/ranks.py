"""What the benchmarks of single steps share: ranks that hold a model of random weights and run steps by hand."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np

from atb_models.command.model_flags import dtype_flag, kv_dtype_flag, quantize_flag
from atb_models.engine.config import EngineConfig
from atb_models.engine.message import Int32
from atb_models.limits import BLOCK_SIZE
from atb_models.ranks.group import RankGroup
from atb_models.ranks.spawn import spawn


def few_layers(description: str | None, kv_blocks: int) -> EngineConfig:
    """What the command line asks for: random weights of a model's width on some ranks of the CPU."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tp", type=int, default=1)
    dtype_flag(parser)
    quantize_flag(parser)
    kv_dtype_flag(parser)
    args = parser.parse_args()
    return EngineConfig(
        args.model_path,
        dtype=args.dtype,
        quantize=args.quantize,
        kv_dtype=args.kv_dtype,
        tp=args.tp,
        load_format="dummy",
        kv_blocks=kv_blocks,
        config_overrides={"num_hidden_layers": args.layers},
    )


def run_ranks(config: EngineConfig, script: str) -> list[list[float]]:
    """Each rank runs `run_rank(config, group)` of this script -> what it returned, by rank."""
    module = Path(script).stem
    with tempfile.TemporaryDirectory() as reports:
        # The ranks find the script by the module's name; spawn adds the project's root.
        places = [str(Path(script).resolve().parent), os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))
        payload = json.dumps([reports, module, config.to_json()])
        with spawn(config.tp, "cpu", payload, f"{Path(__file__).stem}:report") as group:
            report(payload, group)
            group.barrier("measuring")
        return [json.loads(path.read_text()) for path in sorted(Path(reports).iterdir())]


def report(payload: str, group: RankGroup) -> None:
    """What every rank runs."""
    reports, module, config = json.loads(payload)
    figures = __import__(module).run_rank(EngineConfig.from_json(config), group)
    Path(reports, f"{group.rank:03d}").write_text(json.dumps(figures))
    if group.rank != 0:
        group.barrier("measuring")


def message(query_lens: list[int], kv_lens: list[int], first_block: int = 0, top_logits: int = 0) -> Int32:
    """A step of random tokens whose sequences have their blocks one after the other (see engine/message.py)."""
    batch, columns = len(query_lens), max(-(-length // BLOCK_SIZE) for length in kv_lens)
    table = first_block + np.arange(batch * columns)
    tokens = np.random.default_rng(0).integers(0, 1000, sum(query_lens))
    header = [batch, columns, sum(query_lens), top_logits, *query_lens, *kv_lens, *[1] * batch]
    return np.concatenate([header, table, tokens]).astype(np.int32)
