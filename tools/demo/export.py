"""Writes what a run produces: the checkpoint folder in Hugging Face layout, questions.jsonl and boolq/dev.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import Tokenizer

from . import weights
from .corpus import qa_pairs
from .model import DemoConfig, DemoModel
from .reading import dev_items
from .vocab import save_tokenizer


def config_json(cfg: DemoConfig) -> dict[str, object]:
    """config.json as published DeepSeek-MoE checkpoints have it, without auto_map: no remote code is shipped."""
    fixed: dict[str, object] = {
        "architectures": ["DeepseekForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 8192,
        "model_type": "deepseek",
        "norm_topk_prob": False,
        "pretraining_tp": 1,
        "rope_scaling": None,
        "scoring_func": "softmax",
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.36.0",
        "use_cache": True,
    }
    return dict(sorted({**fixed, **cfg.as_dict()}.items()))


def write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def question_rows(tok: Tokenizer) -> list[dict[str, str | int]]:
    """All questions; max_tokens counts the answer's tokens and the eos after them."""
    return [
        {"question": q, "answer": a, "max_tokens": len(tok.encode(a, add_special_tokens=False).ids) + 1}
        for q, a in qa_pairs()
    ]


def write_data(tok: Tokenizer, out: Path) -> None:
    """Write questions.jsonl and boolq/dev.jsonl."""
    (out / "boolq").mkdir(parents=True, exist_ok=True)
    write_jsonl(out / "questions.jsonl", question_rows(tok))
    write_jsonl(out / "boolq" / "dev.jsonl", [item.row() for item in dev_items()])


def write_checkpoint(model: DemoModel, tok: Tokenizer, folder: Path) -> None:
    """Write the checkpoint folder, the weights rounded to fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tok, folder)
    write_json(folder / "config.json", config_json(model.cfg))
    generation = {"bos_token_id": 0, "do_sample": False, "eos_token_id": 1, "transformers_version": "4.36.0"}
    write_json(folder / "generation_config.json", generation)
    weights.save(model, folder / "model.safetensors")
