"""The comparison at the end, against logits that the test asks for itself; and what is written, as it is read again."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import tiny
import torch

from atb_models import LLM
from atb_models.machine import memory
from atb_models.quantizer.main import FORMATS
from tests.quantizer.written import quantize

LINE = re.compile(
    r"logits of (?P<tokens>\d+) tokens, (?P<place>[\w ]+): mean absolute difference (?P<difference>[\d.e+-]+), top-1"
    r" agreement (?P<agreed>[\d.]+) %, perplexity (?P<before>[\d.e+]+) before, (?P<after>[\d.e+]+) after\n"
)
PROMPTS = [list(range(5, 200)), [3, 9, 27, 81, 243], list(range(250, 90, -1)), list(range(0, 250, 3)), [1, 2]]
PROMPTS.append([7] * 300)
LATER = ("llama", "qwen2", "qwen3", "qwen3_moe", "olmoe")
READ = [*PROMPTS[:5], [7] * 66]  # 512 tokens


def logits_of(folder: Path, **options: str) -> list[torch.Tensor]:
    with LLM(folder, device="cpu", dtype="auto", max_batch_size=1, **options) as llm:
        return [llm.prompt_logits(prompt).double() for prompt in READ]


def test_numbers_of_the_comparison(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    source, out = shared / "golden" / "qwen", tmp_path / "out"
    assert quantize(source, out, "--to", "w4a16", "--group_size", "32", "--text", str(text), check=True) == 0
    printed = LINE.fullmatch(capsys.readouterr().out)
    assert printed is not None
    before, after = logits_of(source), logits_of(out)
    assert (int(printed["tokens"]), printed["place"]) == (512, "bf16 on cpu") and sum(map(len, READ)) == 512
    difference = torch.cat([(b - a).abs().mean(-1) for b, a in zip(before, after, strict=True)]).mean()
    assert float(printed["difference"]) == pytest.approx(float(difference), rel=2e-3)
    agreed = torch.cat([b.argmax(-1) == a.argmax(-1) for b, a in zip(before, after, strict=True)]).double().mean()
    assert 0.1 < agreed < 1 and float(printed["agreed"]) == pytest.approx(100 * float(agreed), abs=0.006)
    for name, logits in (("before", before), ("after", after)):
        losses = [
            -one.log_softmax(-1)[torch.arange(len(prompt) - 1), prompt[1:]]
            for one, prompt in zip(logits, READ, strict=True)
        ]
        assert float(printed[name]) == pytest.approx(math.exp(float(torch.cat(losses).mean())), rel=2e-3)


def test_the_real_command_with_the_toy(demo: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "atb_models", "quantize", str(demo), str(tmp_path / "out"), "--to", "w8a16"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    printed = LINE.fullmatch(ran.stdout)
    assert printed is not None and printed["tokens"] == "512"
    assert float(printed["agreed"]) > 97 and 0 < float(printed["difference"]) < 0.1
    assert float(printed["after"]) == pytest.approx(float(printed["before"]), rel=0.03)


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *product(tiny.FAMILIES, ("w8a16", "w8a8_dynamic", "w4a16")),
        ("mixtral", "w8a8_dynamic"),  # whose tensors have other names
        *(pytest.param(*one, marks=pytest.mark.full) for one in product(LATER, ("w8a16", "w8a8_dynamic"))),
    ],
)
def test_files_are_read_as_floats_are_quantised_while_they_are_loaded(
    shared: Path, tmp_path: Path, family: str, method: str
) -> None:
    """To the last bit, in both formats: the same integers and the same scales."""
    source = shared / "golden" / family
    expected = logits_of(source, quantize=method)
    for form in FORMATS:
        assert quantize(source, tmp_path / form, "--to", method, "--format", form) == 0
        assert all(map(torch.equal, logits_of(tmp_path / form), expected)), form


def test_static_activations_come_near_dynamic_ones(shared: Path, tmp_path: Path) -> None:
    """And biases are neither left out nor added twice."""
    source, text = shared / "golden" / "qwen", tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    before, errors = torch.cat(logits_of(source)), {}
    for words in (("w8a8", "--calibration", str(text)), ("w8a8_dynamic",)):
        out = tmp_path / words[0]
        assert quantize(source, out, "--to", *words) == 0
        errors[words[0]] = float((before - torch.cat(logits_of(out))).abs().mean(-1).median())
    assert errors["w8a8_dynamic"] < errors["w8a8"] < 1.5 * errors["w8a8_dynamic"], errors


def test_a_checkpoint_without_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_checkpoint(tmp_path / "source")
    assert quantize(tmp_path / "source", tmp_path / "out", "--to", "w8a16", check=True) == 0
    said = capsys.readouterr()
    assert LINE.fullmatch(said.out)
    assert "has no tokenizer: random token ids stand for the texts of --text" in said.err


def test_a_model_that_does_not_fit_is_written_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_checkpoint(tmp_path / "source")
    monkeypatch.setattr(memory, "_host_available", lambda: 1 << 20)
    assert quantize(tmp_path / "source", tmp_path / "out", "--to", "w8a16", check=True) == 0
    said = capsys.readouterr()
    assert said.out == "" and f"{tmp_path / 'out'} is complete, but was not compared with" in said.err
    assert (tmp_path / "out" / "config.json").exists()
    assert quantize(tmp_path / "source", tmp_path / "static", "--to", "w8a8") == 1, "calibration cannot be left out"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--text", "none.txt"), "--text none.txt cannot be read"),
        (("--text", "none.txt", "--no_check"), "--text is what the check reads, and --no_check leaves the check out"),
    ],
)
def test_texts_that_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    tiny.write_checkpoint(tmp_path / "source")
    assert quantize(tmp_path / "source", tmp_path / "out", "--to", "w8a16", *words, check=True) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
