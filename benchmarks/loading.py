"""Peak resident memory of each rank while it loads: its shard, the largest tensor, and what the process itself takes.

    python benchmarks/loading.py --model_path <folder with the model's config.json> [--layers 4] [--tp 4]

Writes the model's weights as one safetensors file (random values; 4.5 GB for DeepSeek-MoE-16B at 4 layers) to a
temporary folder, loads it with `tp` ranks and prints, for each rank, VmHWM (file pages included) and the bound of
shard + largest tensor + 600 MiB. Exit status 1 if a rank is above it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from atb_models.engine.config import EngineConfig
from atb_models.engine.model_runner import ModelRunner
from atb_models.layers.build import Build
from atb_models.layers.parameter import fillings
from atb_models.models.config_reader import load_model_config
from atb_models.models.decoder import build_model
from atb_models.models.weights.weight_map import checkpoint_tensors
from atb_models.ranks.group import RankGroup
from atb_models.ranks.spawn import spawn

ALLOWANCE = 600 << 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tp", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        largest = write_checkpoint(Path(args.model_path), Path(folder), args.layers)
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew: writing is not what is measured
        reports = Path(folder, "reports")
        reports.mkdir()
        # The ranks find this file's load_rank by the module's name; spawn adds the project's root.
        places = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))
        payload = json.dumps([str(reports), EngineConfig(folder, dtype="bf16", tp=args.tp).to_json()])
        with spawn(args.tp, "cpu", payload, f"{Path(__file__).stem}:load_rank") as group:
            load_rank(payload, group)
            group.barrier("measuring")
        rows = [json.loads(path.read_text()) for path in sorted(reports.iterdir())]
    failed = False
    for rank, (shard, peak) in enumerate(rows):
        bound = shard + largest + ALLOWANCE
        failed |= peak > bound
        print(
            f"rank {rank}: shard {mib(shard)}, largest tensor {mib(largest)}, bound {mib(bound)},"
            f" peak resident {mib(peak)}: {'above' if peak > bound else 'within'}"
        )
    return int(failed)


def load_rank(payload: str, group: RankGroup) -> None:
    """What every rank runs: load its shard, then report shard bytes and VmHWM bytes."""
    reports, config = json.loads(payload)
    engine = EngineConfig.from_json(config)
    runner = ModelRunner(engine, engine.load_model_config(), group, kv_blocks=8)
    shard = sum(parameter.nbytes for parameter in runner.model.parameters())
    Path(reports, f"{group.rank:03d}").write_text(json.dumps([shard, peak_resident()]))
    if group.rank != 0:
        group.barrier("measuring")


def peak_resident() -> int:
    """VmHWM of this process, bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def write_checkpoint(source: Path, folder: Path, layers: int) -> int:
    """One safetensors file of random bf16 weights -> bytes of its largest tensor."""
    shutil.copy(source / "config.json", folder)
    raw = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(raw))
    config = load_model_config(folder, log=False)
    filled = fillings(build_model(config, Build(torch.bfloat16, torch.device("meta"))))
    tensors = {}
    for weight in checkpoint_tensors(config):
        shape = filled[weight.parameter].parts[weight.role].shape
        tensors[weight.name] = torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.02, 0.02)
    save_file(tensors, folder / "model.safetensors")
    return max(tensor.nbytes for tensor in tensors.values())


def mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
