"""How messages tell to install what is missing: by commands that work, wherever this project came from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from atb_models import wording
from atb_models.wording import install_command
from tests.documents.test_languages import USELESS

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")

KINDS = (".py", ".sh", ".md", ".toml", ".html", ".service", "Containerfile")


@pytest.mark.parametrize("extra", ["hub", "npu", "plot", "server"])
def test_the_command_names_the_packages_of_the_extra(root: Path, extra: str) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    words = re.findall("'([^']*)'", install_command(extra))
    assert install_command(extra) == "pip install " + " ".join(f"'{word}'" for word in words)

    def parts(requirement: str) -> set[str]:
        return set(re.split(r"(?=[<>=])(?<![<>=])|,", requirement)) - {""}

    assert list(map(parts, words)) == list(map(parts, project["optional-dependencies"][extra]))


def test_without_an_installation_the_checkout_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(wording.metadata, "requires", absent)
    assert install_command("hub") == "pip install '.[hub]' in the folder of the project"


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


def test_a_missing_npu_from_outside(root: Path, clean_environ: None) -> None:
    if "torch_npu" in {found.name for found in metadata.distributions()}:
        pytest.skip("torch_npu is installed")
    ended = command(root, "run", "--device", "npu")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"device npu: torch_npu is not installed; {install_command('npu')}, or use --device cpu\n" in ended.stderr
