"""w8a8: attention with static activations, its tensors and the range that they stand for; experts with dynamic ones."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from atb_models.quantizer import conversion
from atb_models.quantizer.plan import Shard
from atb_models.quantizer.shard_file import ShardFile
from tests.quantized import integers_and_scales
from tests.quantizer.written import config_of, is_linear, quantize, signature, tensors_of

IDS = [list(range(3, 60)), list(range(100, 256)), [7, 7]]


def calibration(folder: Path) -> tuple[str, str]:
    """A file of token ids, as the command is given it."""
    path = folder / "calibration.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (IDS[0], {"token_ids": IDS[1]}, {"input_ids": IDS[2]})))
    return "--calibration", str(path)


def made(tmp_path: Path, **fields: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], Path]:
    """Source, result and its folder."""
    source = tiny.write_checkpoint(tmp_path / "source", **fields)
    assert quantize(tmp_path / "source", tmp_path / "out", "--to", "w8a8", *calibration(tmp_path)) == 0
    return source, tensors_of(tmp_path / "out"), tmp_path / "out"


def first_inputs(source: dict[str, Tensor]) -> Tensor:
    """What the first layer's attention reads: the norm of the embedding of all ids, float64."""
    x = source["model.embed_tokens.weight"][sum(IDS, [])].double()
    x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    return x * source["model.layers.0.input_layernorm.weight"].double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["deepseek", "qwen"])
def test_tensors_and_description(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    source, written, out = made(tmp_path, family=family, dtype=dtype, torch_dtype=name)
    expected: dict[str, Any] = {}
    kinds = {}
    for weight, tensor in source.items():
        expected[weight], kinds[weight] = (tensor.dtype, tuple(tensor.shape)), "FLOAT"
        if not is_linear(weight):
            continue
        path, outputs = weight.removesuffix(".weight"), len(tensor)
        if ".self_attn." in weight:
            more = {"input_scale": (dtype, (1,)), "input_offset": (dtype, (1,))}
            more["quant_bias"] = torch.int32, (outputs,)
            more["deq_scale"] = torch.int64 if dtype == torch.float16 else torch.float32, (outputs,)
        else:
            more = {"weight_scale": (torch.float32, (outputs, 1)), "weight_offset": (torch.float32, (outputs, 1))}
        more["weight"] = torch.int8, tuple(tensor.shape)
        expected |= {f"{path}.{end}": entry for end, entry in more.items()}
        kinds |= {f"{path}.{end}": "W8A8" if ".self_attn." in weight else "W8A8_DYNAMIC" for end in more}
    assert signature(written) == expected
    description = json.loads((out / "quant_model_description.json").read_text())
    assert description == {"model_quant_type": "W8A8_DYNAMIC", "version": "1.0.0", "group_size": 0} | kinds
    assert config_of(out)["quantize"] == "w8a8_dynamic"
    for weight, tensor in source.items():
        if is_linear(weight):
            assert np.array_equal(written[weight].numpy(), integers_and_scales(tensor)[0])
    if family == "qwen":
        bias = "model.layers.0.self_attn.q_proj.bias"
        assert torch.equal(written[bias], source[bias])


def test_the_range_is_that_of_the_texts(tmp_path: Path) -> None:
    source, written, _ = made(tmp_path)
    x = first_inputs(source)
    low, high = float(x.min()), float(x.max())
    scales = {}
    for role in "qkv":
        stem = f"model.layers.0.self_attn.{role}_proj."
        scale, offset = float(written[f"{stem}input_scale"]), float(written[f"{stem}input_offset"])
        assert scale == pytest.approx((high - low) / 255, rel=0.01), "the model ran in bfloat16, and so is the scale"
        assert offset == pytest.approx(-128 - low / scale, abs=1) and offset == round(offset)
        scales[role] = scale, offset
    assert len(set(scales.values())) == 1, "engines quantise the input of q, k and v once"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_integer_products_are_those_of_the_floats(tmp_path: Path, dtype: torch.dtype) -> None:
    """By the formula of the format, with the bias of the model in quant_bias, and the words of deq_scale."""
    source, written, _ = made(tmp_path, family="qwen", dtype=dtype, torch_dtype=str(dtype).removeprefix("torch."))
    x = first_inputs(source)
    for role in "qkv":
        stem = f"model.layers.0.self_attn.{role}_proj."
        deq = written[f"{stem}deq_scale"]
        if dtype == torch.float16:
            assert (deq >= 0).all() and (deq < 1 << 31).all()
            deq = deq.to(torch.int32).view(torch.float32)
        scale, offset = written[f"{stem}input_scale"].double(), written[f"{stem}input_offset"].double()
        integers, of_rows = integers_and_scales(source[f"{stem}weight"])
        assert torch.equal(deq, (scale.float() * torch.from_numpy(of_rows)))
        x8 = (x / scale + offset).round().clamp(-128, 127)
        sums = x8 @ torch.from_numpy(integers).double().T + written[f"{stem}quant_bias"].double()
        bias = source[f"{stem}bias"].double()
        expected = x @ source[f"{stem}weight"].double().T + bias
        error = (sums * deq.double() - expected).abs()
        assert bias.abs().max() > 20 * error.mean(), "a missing bias would show"
        assert float(error.mean() / expected.std()) < 0.02
        assert float(error.mean(0).max() / expected.std()) < 0.05, "nor does one output lack its correction"


def test_a_run_that_goes_on_does_not_calibrate_again(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "source", num_hidden_layers=6)
    words = ["--to", "w8a8", *calibration(tmp_path), "--max_shard_size", "0.05MB"]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "atb_models", "quantize", str(tmp_path / "source"), str(out), *words, "--no_check"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(list(out.glob("*.safetensors"))) < 2:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert "calibrating with 215 tokens" in process.communicate(timeout=60)[1]
    assert not (out / "config.json").exists()
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0 and "calibrating" not in ended.stderr
    assert quantize(tmp_path / "source", tmp_path / "again", *words) == 0
    whole = tensors_of(tmp_path / "again")
    for name, tensor in tensors_of(out).items():
        assert torch.equal(tensor, whole[name]), name


def test_other_texts_are_another_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_checkpoint(tmp_path / "source")
    words = ["--to", "w8a8", *calibration(tmp_path), "--max_shard_size", "0.1MB"]
    write = conversion.write_shard

    def ending(file: ShardFile, shard: Shard, *more: Any) -> None:
        if shard.name.startswith("quant_model_weights-00002"):
            raise KeyboardInterrupt
        write(file, shard, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "write_shard", ending)
        assert quantize(tmp_path / "source", tmp_path / "out", *words) == 130
    Path(words[3]).write_text("[1, 2, 3]\n")
    assert quantize(tmp_path / "source", tmp_path / "out", *words) == 2
    assert "holds the unfinished result of another command: its --calibration was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.txt", None, "cannot be read: No such file"),
        ("empty.txt", "\n \n", "holds no text"),
        ("empty.jsonl", "\n", "holds no text"),
        ("a.jsonl", '{"prompt": 3}\n', "line 1 must be a text or a list of token ids, or an object with one, not 3"),
        ("a.jsonl", "\n[1, -2]\n", "line 2 must be a text or a list of token ids"),
        ("a.jsonl", "[1, 2", "a.jsonl, line 1 is not valid JSON"),
        ("a.jsonl", "[1, 256]\n", "token id 256 is outside the vocabulary of 256"),
        ("a.jsonl", "[1]\n[2]\n", "no text has two tokens"),
    ],
)
def test_files_that_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str | None, message: str
) -> None:
    tiny.write_checkpoint(tmp_path / "source")
    if text is not None:
        (tmp_path / name).write_text(text)
    words = ("--to", "w8a8", "--calibration", str(tmp_path / name))
    assert quantize(tmp_path / "source", tmp_path / "out", *words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert message in said and "--calibration" in said


def test_what_needs_no_calibration_takes_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize(tmp_path, tmp_path / "out", "--to", "w8a16", "--calibration", "x") == 2
    assert "--calibration is for --to w8a8; the activations of w8a16 need none" in capsys.readouterr().err


def test_compressed_tensors_has_no_place_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_checkpoint(tmp_path / "source")
    assert quantize(tmp_path / "source", tmp_path / "out", "--to", "w8a8", "--format", "compressed-tensors") == 2
    assert "--format compressed-tensors has no place for w8a8" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_random_tokens_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For a checkpoint without a tokenizer, when no token ids are given."""
    tiny.write_checkpoint(tmp_path / "source")
    assert quantize(tmp_path / "source", tmp_path / "out", "--to", "w8a8") == 0
    assert "has no tokenizer: random token ids stand for the texts of --calibration" in capsys.readouterr().err
