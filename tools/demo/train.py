"""Makes the embedded checkpoint from nothing: `python -m tools.demo.train --out DIR [--steps N] [--seed S]`."""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from atb_models import env

from .batches import ANSWER, VERDICT, Batch, Packer
from .evaluate import evaluate
from .export import write_checkpoint, write_data
from .init import starting_point
from .model import DemoConfig, DemoModel
from .vocab import train_tokenizer

PEAK_LR, WARMUP = 2e-3, 100
CLASSES = {ANSWER: "answers", VERDICT: "verdicts"}
BALANCE = 0.01
VOCABULARY = 2496


def losses(model: DemoModel, batch: Batch) -> tuple[Tensor, dict[str, float], Tensor]:
    """The loss [], its parts for the progress line, and the experts' shares [MoE layers, E]."""
    hidden, balance, shares = model(batch.ids, batch.positions, batch.mask, batch.valid)
    picked = batch.classes > 0
    each = F.cross_entropy(model.lm_head(hidden[picked]), batch.targets[picked], reduction="none")
    classes = batch.classes[picked]
    parts = {name: each[classes == cls].sum() / (classes == cls).sum().clamp(min=1) for cls, name in CLASSES.items()}
    total = torch.stack([*parts.values()]).sum() + BALANCE * balance
    return total, {name: part.item() for name, part in parts.items()} | {"balance": balance.item()}, shares


def rate(step: int, steps: int) -> float:
    """Learning rate: linear warm-up, then cosine to 1 % of the peak."""
    if step < WARMUP:
        return PEAK_LR * (step + 1) / WARMUP
    return PEAK_LR * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP))))


def optimizer(model: DemoModel) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.98), fused=True)


def fit(model: DemoModel, tok: Tokenizer, steps: int, rows: int, seed: int, every: int = 50) -> float:
    """Train in place; returns the seconds it took."""
    start, opt = time.time(), optimizer(model)
    for step, batch in zip(range(steps), Packer(tok, seed).batches(rows), strict=False):
        for group in opt.param_groups:
            group["lr"] = rate(step, steps)
        loss, parts, shares = losses(model, batch)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        if step % every == every - 1:
            shown = " ".join(f"{name} {value:.3f}" for name, value in parts.items())
            low, high = shares.min().item() * shares.shape[1], shares.max().item() * shares.shape[1]
            spent = time.time() - start
            print(f"step {step + 1}/{steps} {shown} expert use {low:.2f}..{high:.2f} {spent:.0f} s", flush=True)
    return time.time() - start


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the embedded checkpoint on a CPU.")
    parser.add_argument("--out", type=Path, required=True, help="gets checkpoint/, boolq/dev.jsonl and questions.jsonl")
    parser.add_argument("--steps", type=int, default=1200, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=16, help="rows a step (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="weights and training stream (default: %(default)s)")
    threads = env.get("OMP_NUM_THREADS") or os.cpu_count()
    parser.add_argument("--threads", type=int, default=threads, help="of the CPU (default: OMP_NUM_THREADS, all cores)")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    env.set_default("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tok = train_tokenizer(VOCABULARY, args.seed)
    write_data(tok, args.out)
    model = DemoModel(DemoConfig(vocab_size=tok.get_vocab_size()))
    starting_point(model)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {tok.get_vocab_size()} tokens", flush=True)
    seconds = fit(model, tok, args.steps, args.rows, args.seed)
    write_checkpoint(model, tok, args.out / "checkpoint")
    for half in (False, True):
        print("computed in fp16" if half else "computed in fp32 (weights rounded to fp16)")
        report = evaluate(args.out / "checkpoint", args.out / "questions.jsonl", args.out / "boolq" / "dev.jsonl", half)
        print("\n".join("  " + line for line in report.lines()), flush=True)
    size = sum(f.stat().st_size for f in (args.out / "checkpoint").iterdir())
    print(f"{size / 1e6:.2f} MB; trained in {seconds / 60:.1f} minutes with {args.threads} threads")


if __name__ == "__main__":
    main()
