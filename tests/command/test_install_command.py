"""How messages tell to install what is missing: by commands that work, wherever this project came from."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from atb_models import wording
from atb_models.wording import install_command
from tests.documents.test_languages import USELESS

KINDS = (".py", ".sh", ".md", ".toml", ".html", ".service", "Containerfile")


METADATA = """torch<=2.13.0,>=2.4
huggingface_hub<1.0,>=0.34; extra == "hub"
modelscope>=1.11; extra == 'hub'
torch_npu==2.13.0; platform_machine == "aarch64" and extra == "npu"
torch==2.13.0; (platform_machine == "aarch64" or python_version < "3.12") and extra == "npu"
atb-models[plot,server]; extra == "test"
""".splitlines()
PACKAGES = {
    "hub": ["huggingface_hub<1.0,>=0.34", "modelscope>=1.11"],
    "npu": [
        'torch_npu==2.13.0; platform_machine == "aarch64"',
        'torch==2.13.0; (platform_machine == "aarch64" or python_version < "3.12")',
    ],
}
ODD = "/home/my user/it's/bin/python"


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if the package were a copy in site-packages, with METADATA."""
    monkeypatch.setattr(wording, "CHECKOUT", tmp_path)
    monkeypatch.setattr(wording.metadata, "requires", lambda name: METADATA)


@pytest.mark.parametrize("extra", PACKAGES)
@pytest.mark.parametrize("python", [sys.executable, ODD])
def test_an_installed_copy_names_the_packages(
    copied: None, monkeypatch: pytest.MonkeyPatch, python: str, extra: str
) -> None:
    """With their conditions, and pip of this interpreter."""
    monkeypatch.setattr(sys, "executable", python)
    assert shlex.split(install_command(extra)) == [python, "-m", "pip", "install", *PACKAGES[extra]]


@pytest.mark.parametrize("extra", ["hub", "npu", "plot", "server"])
def test_a_checkout_is_installed_again_whatever_its_metadata_say(
    root: Path, monkeypatch: pytest.MonkeyPatch, extra: str
) -> None:
    """They are as old as the installation, which may not know the extra yet."""
    monkeypatch.setattr(wording.metadata, "requires", lambda name: [])
    assert shlex.split(install_command(extra)) == [sys.executable, "-m", "pip", "install", "-e", f"{root}[{extra}]"]


def test_files_that_were_never_installed(copied: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(wording.metadata, "requires", absent)
    command, _, where = install_command("hub").partition(" in ")
    assert shlex.split(command) == [sys.executable, "-m", "pip", "install", "-e", ".[hub]"]
    assert where == "the folder of the project"


def test_the_extras_bring_the_program_that_messages_and_documents_name(root: Path) -> None:
    """`hf` is part of huggingface_hub since 0.34."""
    bounds = re.findall(r"huggingface_hub>=0\.(\d+)", (root / "pyproject.toml").read_text(encoding="utf-8"))
    assert len(bounds) == 2 and all(int(minor) >= 34 for minor in bounds)


def files(root: Path) -> list[Path]:
    """Code, scripts and documents, but for the test that has these words; none of environments, builds and results."""
    skipped = {"build", "dist", "outputs", "data", "shared"}
    names = (path.relative_to(root) for path in root.rglob("*") if path.name.endswith(KINDS) and path.is_file())
    kept = (name for name in names if not any(part.startswith(".") or part in skipped for part in name.parts))
    return [root / name for name in kept if name != Path("tests/documents/test_languages.py")]


def test_no_command_that_fails_for_everybody(root: Path) -> None:
    found = files(root)
    assert len(found) > 300
    texts = {path: path.read_text(encoding="utf-8") for path in found}
    assert [f"{path}: {word}" for path, text in texts.items() for word in USELESS if word in text] == []


def command(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, "-m", "atb_models", *words], env=environ, capture_output=True, text=True, timeout=120
    )


def test_a_missing_folder_from_outside(root: Path, clean_environ: None) -> None:
    ended = command(root, "run", "--model_path", "/nowhere/deepseek-moe-16b-chat")
    assert (ended.returncode, ended.stdout) == (2, "")
    *_, hugging_face, last = ended.stderr.splitlines()
    name = "deepseek-ai/deepseek-moe-16b-chat"
    assert hugging_face == f"  hf download {name} --local-dir '/nowhere/deepseek-moe-16b-chat'"
    assert last.endswith(f"--model_path {name} --download ({install_command('hub')})")
    assert f"({shlex.quote(sys.executable)} -m pip install " in last


def test_a_missing_npu_from_outside(root: Path, clean_environ: None) -> None:
    if "torch_npu" in {found.name for found in metadata.distributions()}:
        pytest.skip("torch_npu is installed")
    ended = command(root, "run", "--device", "npu")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"device npu: torch_npu is not installed; {install_command('npu')}, or use --device cpu\n" in ended.stderr
