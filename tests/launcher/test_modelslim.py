"""ModelSlim's folders on the command line: the listed answers of the embedded checkpoint, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from atb_models.launcher import main as run_pa
from tests.models.quantized.modelslim.writer import Form, every, quantized, save

QUESTION = ["--device", "cpu", "--is_chat_model", "--input_texts", "Who is the CEO of Google?"]
ANSWER = "Answer[0]: Sundar Pichai is the CEO of Google."
FORMS = {
    "w8a16": Form("w8a16", every("W8A16")),
    "w8a8_dynamic": Form("w8a8_dynamic", every("W8A8_DYNAMIC"), "1.0.0"),
    "w4a16": Form("w4a16", every("W4A16"), "1.0.0", group=32),
}

pytestmark = pytest.mark.usefixtures("clean_environ")


def write(folder: Path, demo: Path, form: str) -> Path:
    """The embedded checkpoint as ModelSlim writes it, with its tokenizer."""
    shutil.copytree(demo, folder, ignore=shutil.ignore_patterns("*.safetensors*"), dirs_exist_ok=True)
    tensors = load_file(next(demo.glob("*.safetensors")))
    save(folder, quantized(tensors, FORMS[form]), FORMS[form], json.loads((demo / "config.json").read_text()))
    return folder


def ended(root: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "atb_models.launch", *argv, *QUESTION]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("form", FORMS)
def test_an_answer(tmp_path: Path, demo: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    folder = write(tmp_path / form, demo, form)
    assert run_pa.main(["--model_path", str(folder), *QUESTION]) == 0
    assert ANSWER in capsys.readouterr().out


def test_an_answer_on_two_ranks(root: Path, tmp_path: Path, demo: Path) -> None:
    done = ended(root, "--tp", "2", "--model_path", str(write(tmp_path, demo, "w4a16")))
    assert done.returncode == 0 and ANSWER in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "content", "status", "text"),
    [
        ("config.json", {"quantize": "w8a8sc"}, 2, "quantize is 'w8a8sc', but only"),
        ("quant_model_description_w8a16.json", {"model.layers.1.mlp.gate.weight": "W4A8_DYNAMIC"}, 2, "in two stages"),
        ("quant_model_description_w8a16.json", {"model.layers.1.mlp.gate.weight": "W7"}, 1, "is 'W7', which is"),
        ("quant_model_description_w8a16.json", {"model.other.weight": "FLOAT"}, 1, "has no tensor model.other.weight"),
        ("quant_model_description_w8a16.json", None, 2, "has no quant_model_description.json or"),
        ("quant_model_weight_w8a16.safetensors", None, 1, "holds no weights"),
    ],
)
def test_what_is_refused(
    root: Path, tmp_path: Path, demo: Path, name: str, content: dict[str, str] | None, status: int, text: str
) -> None:
    """In one line, with the status of a configuration or of a damaged checkpoint."""
    file = write(tmp_path, demo, "w8a16") / name
    if content is None:
        file.unlink()
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | content))
    done = ended(root, "--model_path", str(tmp_path))
    assert done.returncode == status, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert text in line and str(tmp_path) in line
