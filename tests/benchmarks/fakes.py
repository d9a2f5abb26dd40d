"""Programs that stand in for other engines: they print what those print. And small models of both shapes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tests.tiny import DEEPSEEK, QWEN

TINY = QWEN | {
    "hidden_size": 128,
    "initializer_range": 0.06,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "shared_expert_intermediate_size": 96,
}
TINY_DEEPSEEK = DEEPSEEK | {
    "hidden_size": 128,
    "initializer_range": 0.06,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PYTHON = f"#!{sys.executable}\n"
# Rates that are easy to tell apart: of a prompt its length, of decoding 10 a sequence.
BENCH = """
import json, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert open(flags["-m"], "rb").read(4) == b"GGUF", flags
row = {"build_commit": "c0ffee", "build_number": 42, "n_prompt": int(flags["-p"]), "avg_ts": float(flags["-p"])}
print(json.dumps([row]))
"""
BATCHED_BENCH = """
import sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
pp, tg, pl = (int(flags[name]) for name in ("-npp", "-ntg", "-npl"))
assert int(flags["-c"]) >= pl * (pp + tg), flags
names = ("PP", "TG", "B", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s", "T s", "S t/s")
print("main: n_kv_max = 2048, n_threads = " + flags["-t"])
print("|" + "|".join("%9s " % name for name in names) + "|")
print("|" + "|".join("-" * 10 for _ in names) + "|")
print("|%6d | %6d | %4d | %6d | %8.3f | %8.2f | %8.3f | %8.2f | %8.3f | %8.2f |" % (
    pp, tg, pl, pl * (pp + tg), 1.5, pl * pp / 1.5, 3.2, 10 * pl, 4.7, 99.0))
"""
# Of the checkpoint beside the file, by the plain models of these tests: over the second half of each chunk.
PERPLEXITY = """
import json, math, pathlib, sys
import torch
from safetensors.torch import load_file
from tests.parity.plain import plain_logits
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder, size = pathlib.Path(flags["-m"]).parent, int(flags["-c"])
config = json.loads((folder / "config.json").read_text())
tensors = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
ids, losses = list(pathlib.Path(flags["-f"]).read_bytes()), []
for start in range(0, len(ids) - size + 1, size):
    chunk = ids[start : start + size]
    scores = plain_logits(config, tensors, chunk).log_softmax(-1)
    losses += [-float(scores[i, chunk[i + 1]]) for i in range(size // 2, size - 1)]
    print("[%d]%.4f," % (start // size + 1, math.exp(sum(losses) / len(losses))), end="")
"""
FAILS = """
import sys
print("loading", file=sys.stderr)
print("error: the tensor blk.0.attn_q.weight is odd", file=sys.stderr)
sys.exit(3)
"""
UNKNOWN = """
import sys
print("llama_model_load: error loading model: unknown model architecture: 'deepseek'", file=sys.stderr)
print("main: error: unable to load model", file=sys.stderr)
sys.exit(1)
"""
# A transformers whose model is the plain one in float32; in other dtypes, of which only rates are asked, it is nothing.
TRANSFORMERS = """
import json, pathlib
from types import SimpleNamespace
import torch
from safetensors.torch import load_file
from tests.parity.plain import plain_logits

__version__ = "0.0.fake"
CHANGED = {changed!r}


class Model:
    def __init__(self, folder, dtype):
        folder = pathlib.Path(folder)
        self.config = json.loads((folder / "config.json").read_text()) | CHANGED
        self.tensors = {{k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}}
        self.is_plain = dtype == torch.float32

    def eval(self):
        return self

    def model(self, input_ids, past_key_values, use_cache):
        ids = input_ids if past_key_values is None else torch.cat((past_key_values, input_ids), 1)
        logits = torch.zeros(len(ids), 1, self.config["vocab_size"])
        if self.is_plain:
            places = [ids.shape[1] - 1]
            logits = torch.stack([plain_logits(self.config, self.tensors, row.tolist(), places) for row in ids])
        return SimpleNamespace(last_hidden_state=logits, past_key_values=ids)

    def lm_head(self, hidden):
        return hidden


class AutoModelForCausalLM:
    @staticmethod
    def from_pretrained(folder, torch_dtype):
        return Model(folder, torch_dtype)
"""


def llama_folder(folder: Path, **programs: str) -> Path:
    """A folder of llama.cpp's programs; `programs` replaces some, with _ for -; an empty text leaves one out."""
    written = {"llama_bench": BENCH, "llama_batched_bench": BATCHED_BENCH, "llama_perplexity": PERPLEXITY} | programs
    folder.mkdir()
    for name, code in written.items():
        if code:
            _program(folder / name.replace("_", "-"), PYTHON + code)
    return folder


def transformers_python(folder: Path, root: Path, **changed: object) -> Path:
    """An interpreter that has the transformers above, which takes `changed` for fields of the config.json."""
    (folder / "site" / "transformers").mkdir(parents=True)
    (folder / "site" / "transformers" / "__init__.py").write_text(TRANSFORMERS.format(changed=changed))
    path = shlex.quote(f"{folder / 'site'}:{root}")
    return _program(folder / "python", f'#!/bin/sh\nPYTHONPATH={path} exec {shlex.quote(sys.executable)} "$@"\n')


def _program(file: Path, text: str) -> Path:
    file.write_text(text)
    file.chmod(0o755)
    return file
