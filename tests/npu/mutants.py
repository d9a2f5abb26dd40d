"""Mistakes that somebody could make, each put into a copy of the project: does a test see it?

python tests/npu/mutants.py [word ...]     # those whose area or name has one of the words; all take a while
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
OPS, SETUP = "atb_models/ops/npu.py", "atb_models/machine/npu.py"
LAYOUT = "atb_models/ops/npu_layout.py"
CACHE, CHUNKS = "atb_models/ops/quantized/npu_cache.py", "atb_models/ops/quantized/npu_chunks.py"
INTEGERS, PACKING = "atb_models/ops/quantized/npu.py", "atb_models/ops/quantized/npu_packing.py"
GRAPHS, MESSAGE = "atb_models/engine/graph_capture.py", "atb_models/engine/message.py"
DEVICE, GROUPS = "atb_models/machine/device.py", "atb_models/ranks/process_group.py"
LIMIT_S = 600
INSIDE = "tests/npu/inside"
# In this order, until one fails; for some areas the one that is made for them comes first.
FIRST = {
    **{"device": "set-up", "collectives": "parity", "graphs": "graphs", "integers": "integers", "packing": "integers"},
    **{"shares": "integer parity", "int8 cache": "int8 cache"},
}
CHECKS = {
    "contracts": (f"{INSIDE}/test_widths.py", "-k", "contract or falls_back"),
    "operations": (f"{INSIDE}/test_operations.py",),
    "integers": (f"{INSIDE}/test_integers.py",),
    "integer parity": (f"{INSIDE}/test_integer_parity.py", "-k", "w8a8-4-fp16 or test_4_bits and qwen-8"),
    "int8 cache": (f"{INSIDE}/test_int8_cache.py",),
    "steps": (f"{INSIDE}/test_step.py",),
    "graphs": (f"{INSIDE}/test_capture.py",),
    "set-up": ("tests/machine/test_npu.py", "tests/npu/test_setup.py"),
    "parity": (f"{INSIDE}/test_parity.py", "-k", "deepseek_d128 or xverse or conditions or answers"),
}

ONCE_MORE = """self.model(step.on(ints), self.caches)
        npu = device_module("npu")
        graph = npu.NPUGraph()
        with npu.graph(graph, pool=pool, auto_dispatch_capture=True):
            logits_BV = self.model(step.on(ints), self.caches)"""


class Mutant(NamedTuple):
    """`old` stands once in `file`, and `new` takes its place."""

    area: str
    name: str
    file: str
    old: str
    new: str


MUTANTS = [
    Mutant("attention", "query lengths for totals", OPS, "=step.query_ends", "=step.query_lens"),
    Mutant("attention", "totals of the queries for the keys", OPS, "_kv=step.kv_lens", "_kv=step.query_ends"),
    Mutant("attention", "no mask", OPS, "        atten_mask=_mask(q_TND.device),\n", ""),
    Mutant("attention", "mask of what may be seen", OPS, ".triu_(1)", ".tril_()"),
    Mutant("attention", "mask without the diagonal", OPS, ".triu_(1)", ".triu_()"),
    Mutant("attention", "mask of another size", OPS, "MASK_SIZE = 2048", "MASK_SIZE = 1024"),
    Mutant("attention", "no sparse mode", OPS, "CAUSAL = 3", "CAUSAL = 0"),
    Mutant("attention", "key-value heads for heads", OPS, "num_heads=q_TND.shape[1]", "num_heads=kv_heads"),
    Mutant("attention", "no key-value heads", OPS, "        num_key_value_heads=kv_heads,\n", ""),
    Mutant("attention", "default scale", OPS, "        scale=scale,\n", ""),
    Mutant("attention", "default layout", OPS, '        input_layout="TND",\n', ""),
    Mutant("attention", "block table of int64", OPS, "=step.block_table_BC,", "=step.block_table_BC.long(),"),
    Mutant("attention", "heads not padded", OPS, "q_TND = widened(q_TND, width)", "q_TND = q_TND.contiguous()"),
    Mutant("cache", "default cache layout", OPS, 'step.slots_T,\n        cache_mode="Norm",', "step.slots_T,"),
    Mutant("cache", "slots of int16", OPS, "        step.slots_T,\n", "        step.slots_T.to(torch.int16),\n"),
    Mutant("cache", "values that are a view", OPS, "widened(v_TMD, width)", "v_TMD"),
    Mutant("cache", "values for keys", OPS, "widened(k_TMD, width)", "widened(v_TMD, width)"),
    Mutant("cache", "caches swapped", OPS,
        "cache.k_PSMD,\n        cache.v_PSMD,\n        step", "cache.v_PSMD,\n        cache.k_PSMD,\n        step"),
    Mutant("cache", "blocks of 16 allowed", OPS, "BLOCK_SIZES = (", "BLOCK_SIZES = (16, "),
    Mutant("cache", "block size fixed", OPS, "block_size=block_size", "block_size=128"),
    Mutant("cache", "narrow heads in the cache", LAYOUT, "plane.heads, HEAD_SIZE)\n", "plane.heads, plane.width)\n"),
    Mutant("int8 cache", "scales token after token", LAYOUT,
        "(plane.heads, block_size) if", "(block_size, plane.heads) if"),
    Mutant("int8 cache", "scales of fp16", "atb_models/ops/plane.py",
        "heads, 1, torch.float32", "heads, 1, torch.float16"),
    Mutant("int8 cache", "no scales of the values", CACHE, '        value_antiquant_scale=cache[scale_of("v")],\n', ""),
    Mutant("int8 cache", "scales of the keys for the values", CACHE,
        'value_antiquant_scale=cache[scale_of("v")]', 'value_antiquant_scale=cache[scale_of("k")]'),
    Mutant("int8 cache", "mode of whole tokens", CACHE, "OF_BLOCKS = 5", "OF_BLOCKS = 4"),
    Mutant("int8 cache", "mode of the keys alone", CACHE, "        value_antiquant_mode=OF_BLOCKS,\n", ""),
    Mutant("int8 cache", "blocks of scales too far apart", CACHE, "(heads - 1) * size", "heads * size"),
    Mutant("int8 cache", "scales of a token side by side", CACHE, "0, heads * size, size,", "0, heads, 1,"),
    Mutant("int8 cache", "totals of single queries", CACHE,
        "_kv=step.kv_lens[span.rows],\n        block", "_kv=list(accumulate(step.kv_lens[span.rows])),\n        block"),
    Mutant("int8 cache", "lengths of chunks for totals", CACHE,
        "_kv=list(accumulate(step.kv_lens[span.rows]))", "_kv=step.kv_lens[span.rows]"),
    Mutant("int8 cache", "block tables of all rows", CACHE, "=step.block_table_BC[span.rows]", "=step.block_table_BC"),
    Mutant("int8 cache", "scale of a query left out", CACHE,
        '        scale=scale,\n        input_layout="BNSD"', '        input_layout="BNSD"'),
    Mutant("int8 cache", "floats of a layer kept", CACHE, "    forget_floats(step)\n", ""),
    Mutant("int8 cache", "integers for floats", CHUNKS, ".float().mul_(scale_TM.unsqueeze(-1))", ".float()"),
    Mutant("int8 cache", "scales read head after head", CHUNKS,
        ".transpose(1, 2).flatten(0, 1)", ".flatten(0, 1).view(-1, cache[name].shape[2])"),
    Mutant("int8 cache", "blocks of the first row", CHUNKS, "_read(cache, name, blocks_C,",
        "_read(cache, name, step.block_table_BC[0],"),
    Mutant("int8 cache", "chunks without what was before", CHUNKS,
        "if before := kv_len - len(chunk)", "if before := 0"),
    Mutant("router", "scores in half precision", OPS,
        "moe.router.reference", "lambda x, w: F.linear(x, w.to(x.dtype))"),
    Mutant("router", "sigmoid for softmax", OPS, "SOFTMAX = 0", "SOFTMAX = 1"),
    Mutant("router", "renormalised by the operator", OPS, "renorm=0)", "renorm=1)"),
    Mutant("router", "never renormalised", OPS, "if gating.renormalize_eps is not None", "if False"),
    Mutant("router", "expert numbers of int64", OPS,
        "return weights_TK, experts_TK", "return weights_TK, experts_TK.long()"),
    Mutant("experts", "totals for counts", OPS, "expert_tokens_num_type=COUNTS", "expert_tokens_num_type=0"),
    Mutant("experts", "counts read as totals", INTEGERS,
        "group_list_type=COUNTS,\n        group_type=0,  #", "group_list_type=0,\n        group_type=0,  #"),
    Mutant("experts", "weights not packed", OPS, "packings=packings(npu_quantized.CONVERSIONS)", "packings={}"),
    Mutant("experts", "weights [E, O, I]", INTEGERS,
        "[x_RI],\n        [weight_EOI.data]", "[x_RI],\n        [weight_EOI.data.transpose(1, 2)]"),
    Mutant("experts", "no group type", INTEGERS, "        group_type=0,  # groups of rows\n", ""),
    Mutant("experts", "tokens for rows", OPS, "active_num=experts_TK.numel()", "active_num=experts_TK.shape[0]"),
    Mutant("experts", "one expert left out", OPS, "[0, num_experts]", "[0, num_experts - 1]"),
    Mutant("experts", "combined in float32", OPS, "weights_TK.to(y_RH.dtype)", "weights_TK"),
    Mutant("experts", "packed as they are", PACKING,
        "place[:, first : first + len(band_OI)].copy_(band_OI.t())", "place.view_as(band_OI).copy_(band_OI)"),
    Mutant("integers", "weight not turned", INTEGERS, "weight_OI.data.t() if by_rows else", ""),
    Mutant("integers", "scales of groups not turned", INTEGERS, "if by_rows and scale.dim() == 2", "if False"),
    Mutant("integers", "size of groups not told", INTEGERS, "layout.unit if in_groups(layout) else 0", "0"),
    Mutant("integers", "bias of bf16", INTEGERS, "if bias_O is not None and x_TI.dtype == torch.bfloat16", "if False"),
    Mutant("integers", "no offsets of experts", INTEGERS, "if scale is not None and offset is None", "if False"),
    Mutant("integers", "no scales of rows", INTEGERS, "pertoken_scale=x_scale_T", "pertoken_scale=None"),
    Mutant("integers", "no scales of experts' rows", INTEGERS,
        "None if x_scale_R is None else [x_scale_R]", "None"),
    Mutant("integers", "scales of rows not routed", INTEGERS,
        ".scatter_(0, rows_TK.flatten().long(), scale_TK.flatten())", ".copy_(scale_TK.flatten())"),
    Mutant("integers", "counts of int8 experts as totals", INTEGERS,
        "group_list_type=COUNTS,\n        group_type=0,\n", "group_list_type=0,\n        group_type=0,\n"),
    Mutant("integers", "results of the default type", INTEGERS,
        "split_item=2,\n        output_dtype=dtype,", "split_item=2,"),
    Mutant("integers", "bias beside static sums left out", INTEGERS, "else y_TO + bias_O", "else y_TO"),
    Mutant("integers", "bias of sums left out", INTEGERS,
        "[weight_EOI.quant_bias],\n", "[torch.zeros_like(weight_EOI.quant_bias)],\n"),
    Mutant("integers", "static offset left out", INTEGERS, "x_TI, scale, offset, torch", "x_TI, scale, None, torch"),
    Mutant("integers", "static scale divides", INTEGERS, "torch.qint8, -1, False", "torch.qint8, -1, True"),
    Mutant("integers", "scales of rows along the columns", INTEGERS, "OF_ROWS = -2", "OF_ROWS = -1"),
    Mutant("integers", "last row to the next expert", INTEGERS, "right=True", "right=False"),
    Mutant("packing", "offsets as they are", PACKING,
        'change = _negated if name == "offset"', "change = _same if name"),
    Mutant("packing", "scale of the checkpoint", PACKING, '_reciprocal if name == "input_scale" else _same', "_same"),
    Mutant("packing", "int64 scales for bf16", PACKING,
        '"static" and meets == torch.float16', '"static" and meets == torch.bfloat16'),
    Mutant("packing", "float32 scales of experts for bf16", PACKING,
        "torch.bfloat16 if meets == torch.bfloat16 else torch.float32", "torch.float32"),
    Mutant("packing", "scales in float32", PACKING,
        "or self.weight.bits == 4).layout(plain, meets)", "or self.weight.bits == 4).layout(plain, torch.float32)"),
    Mutant("packing", "scales of groups [O, G]", PACKING, "stacked or self.weight.bits == 4", "False"),
    Mutant("packing", "int4 packed along the inputs", PACKING,
        "band_OI.t().to(torch.int32).contiguous()", "band_OI.to(torch.int32).contiguous()"),
    Mutant("packing", "one group is a group", PACKING, " and layout.unit != layout.shape[-1]", ""),
    Mutant("packing", "groups of 16 taken", PACKING, "if unit and unit % GROUP_STEP", "if False"),
    Mutant("packing", "offsets beside int8 activations", PACKING,
        'if plain.activations != "float" and plain.offsets', "if False"),
    Mutant("shares", "cut at multiples of 8", OPS, "group_step=GROUP_STEP", "group_step=8"),
    Mutant("shares", "sums' bias on every rank", "atb_models/layers/parameter.py",
        "stop=0 if self.start else self.shape[0]", "stop=self.shape[0]"),
    Mutant("shares", "scale of another group", "atb_models/models/weights/seen/regrouped.py",
        "torch.arange(first, last) * unit // (group or units * unit)", "torch.arange(first, last)"),
    Mutant("norms", "residual not added", OPS, "return normed_TH, sum_TH", "return normed_TH, x_TH"),
    Mutant("rotation", "half of the head", OPS, "torch.cat((half_TD, half_TD), dim=-1)", "half_TD"),
    Mutant("rotation", "tables in half precision", OPS,
        "x_TND[..., :width].float()[None], cos_1T1D, sin_1T1D)[0]",
        "x_TND[..., :width][None], cos_1T1D.to(x_TND.dtype), sin_1T1D.to(x_TND.dtype))[0]"),
    Mutant("collectives", "gloo on the device", GROUPS, '"npu": "hccl"', '"npu": "gloo"'),
    Mutant("collectives", "shares not summed", GROUPS, "        self._call(dist.all_reduce, x)\n", ""),
    Mutant("collectives", "gathered side by side wrongly", GROUPS, "gathered.movedim(0, dim)", "gathered"),
    Mutant("collectives", "only one rank's logits", GROUPS,
        "list(gathered.unbind()), x)", "list(gathered.unbind())[::-1], x)"),
    Mutant("device", "device not set", DEVICE,
        "        device_module(kind).set_device(local_rank)\n", "        pass\n"),
    Mutant("device", "all ranks on one device", DEVICE,
        "return torch.device(kind, local_rank)", "return torch.device(kind, 0)"),
    Mutant("device", "a rank without a device", DEVICE, "if local_rank >= count", "if False"),
    Mutant("device", "torch_npu not imported", DEVICE, "        npu.load()\n", "        pass\n"),
    Mutant("device", "coarse float32 products", DEVICE, ".allow_hf32 = False", ".allow_hf32 = True"),
    Mutant("device", "user's values overwritten", SETUP,
        "env.set_default(name, value)", "os.environ[name] = value"),
    Mutant("device", "saturation half set", SETUP, 'env.get("INF_NAN_MODE_ENABLE") == "0"', "False"),
    Mutant("device", "list of devices unchecked", SETUP, "if listed and len(listed) != count", "if False"),
    Mutant("device", "no devices unnoticed", SETUP, "if count == 0", "if False"),
    Mutant("device", "errors of the import unexplained", SETUP, "(ImportError, OSError, RuntimeError)", "KeyError"),
    Mutant("device", "launcher sees the listed alone", "atb_models/launcher/devices.py",
        "with all_visible():", "if True:"),
    Mutant("step", "a value looked at", OPS,
        "    x_RH, rows_R, counts_E, _ =", "    experts_TK.max().item()\n    x_RH, rows_R, counts_E, _ ="),
    Mutant("step", "copied from pageable memory", MESSAGE,
        'host if device.type == "cpu" else host.pin_memory()', "host"),
    Mutant("step", "lengths taken from the device", OPS,
        "=step.query_ends", "=torch.tensor(step.query_lens, device=q_TND.device).cumsum(0).tolist()"),
    Mutant("graphs", "lengths of the capture", GRAPHS,
        '        captured.graph.update(cpu_update_input=[{"actual_seq_lengths_kv": step.kv_lens}])\n', ""),
    Mutant("graphs", "what a step kept before its capture", GRAPHS, ONCE_MORE,
        "inputs = step.on(ints)\n        " + ONCE_MORE.replace("step.on(ints)", "inputs")),
    Mutant("graphs", "another batch size's", GRAPHS, "zip(sizes, reversed(captured)", "zip(sizes, captured"),
    Mutant("graphs", "added rows among the answers", GRAPHS, "logits_BV[:batch]", "logits_BV"),
    Mutant("graphs", "added rows in a sequence's block", MESSAGE, "= spare - added //", "= added //"),
]  # fmt: skip


def copy_of_the_project(parent: Path) -> Path:
    """The files that git knows or does not ignore, and the developers' data beside them."""
    copy = parent / "project"
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout
    for name in filter(None, names.decode().split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    (parent / "shared").symlink_to(ROOT.parent / "shared")
    return copy


def caught(project: Path, area: str = "") -> str | None:
    """The check that fails, None where all pass."""
    for name in sorted(CHECKS, key=lambda name: name != FIRST.get(area)):
        selection = CHECKS[name]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *selection]
        if any(INSIDE in word for word in selection):
            command = [sys.executable, "-m", "tests.npu.soft", "--devices", "8", *command]
        try:
            done = subprocess.run(
                command, cwd=project, capture_output=True, text=True, env=environment(project), timeout=LIMIT_S
            )
        except subprocess.TimeoutExpired:
            return f"{name}: no end within {LIMIT_S} s"
        if done.returncode == 1:
            by_contract = "ContractError" in done.stdout
            return f"{name}{' (contract)' if by_contract else ''}: {failure(done.stdout)}"
        if done.returncode:
            raise SystemExit(f"{name} could not run: {done.stdout}{done.stderr}")
    return None


def failure(output: str) -> str:
    lines = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0].partition("::")[2][:100] if lines else "?"


def environment(project: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


def main(words: list[str]) -> int:
    chosen = [one for one in MUTANTS if not words or any(word in f"{one.area} {one.name}" for word in words)]
    alive, by_contract = 0, 0
    with tempfile.TemporaryDirectory() as parent:
        project = copy_of_the_project(Path(parent))
        if not words and (found := caught(project)):
            raise SystemExit(f"a check fails without any mistake: {found}")
        for mutant in chosen:
            path = project / mutant.file
            text = path.read_text()
            assert text.count(mutant.old) == 1, f"{mutant.name}: {mutant.old!r} stands {text.count(mutant.old)} times"
            path.write_text(text.replace(mutant.old, mutant.new))
            found = caught(project, mutant.area)
            path.write_text(text)
            alive += found is None
            by_contract += found is not None and "(contract)" in found
            print(f"{mutant.area:12} {mutant.name:34} {found or 'SURVIVES'}", flush=True)
    print(f"{len(chosen)} mistakes, {len(chosen) - alive} caught, {by_contract} of them by a contract")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
