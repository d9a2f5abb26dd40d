"""Finding a checkpoint's folder, the commands that would fetch one, and fetching, without a network."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from atb_models.errors import CheckpointError, ConfigError
from atb_models.fetch import EXAMPLES, download, model_folder, repository_name
from atb_models.wording import install_command

CHAT = "deepseek-ai/deepseek-moe-16b-chat"


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        (CHAT, CHAT),
        ("deepseek-moe-16b-chat", CHAT),
        ("/data/weights/DeepSeek-MoE-16B-Chat/", CHAT),
        ("/data/qwen1.5-moe-a2.7b-chat", "Qwen/Qwen1.5-MoE-A2.7B-Chat"),
        ("XVERSE-MoE-A4.2B", "xverse/XVERSE-MoE-A4.2B"),
        ("/data/qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B"),
        ("someone/fine-tuned.v2", "someone/fine-tuned.v2"),
        ("/data/weights/mine", None),
        ("./weights/mine", None),
        ("../mine", None),
        ("mine", None),
    ],
)
def test_repository_name(typed: str, name: str | None) -> None:
    assert repository_name(typed) == name


def test_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert model_folder(checkpoint(tmp_path / "a b")) == tmp_path / "a b"


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    checkpoint(tmp_path / "mine")
    assert model_folder("~/mine") == tmp_path / "mine"


def test_missing_folder_prints_commands_for_its_model(tmp_path: Path) -> None:
    target = tmp_path / "deepseek-moe-16b-chat"
    with pytest.raises(ConfigError) as refusal:
        model_folder(target)
    message = str(refusal.value)
    assert f"model_path {target} is no folder" in message
    assert f"modelscope download --model {CHAT} --local_dir '{target}'" in message
    assert f"\n  hf download {CHAT} --local-dir '{target}'" in message
    assert f"--model_path {CHAT} --download" in message and install_command("hub") in message


def test_missing_folder_prints_commands_for_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refusal:
        model_folder("someone/model")
    assert "modelscope download --model someone/model --local_dir 'model'" in str(refusal.value)
    assert str(tmp_path / "someone" / "model") in str(refusal.value)


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("/nowhere/mine", EXAMPLES),
        ("/nowhere/llama-3.1", ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct")),
    ],
)
def test_missing_folder_of_unknown_name_prints_commands_for_models_like_it(typed: str, names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as refusal:
        model_folder(typed)
    assert tuple(re.findall(r"^  hf download (\S+) ", str(refusal.value), re.MULTILINE)) == names


def test_file_instead_of_folder(tmp_path: Path) -> None:
    file = checkpoint(tmp_path) / "config.json"
    with pytest.raises(ConfigError, match=f"is a file; give the folder that holds it: {tmp_path}"):
        model_folder(file)


def test_folder_of_folders_lists_them(tmp_path: Path) -> None:
    checkpoint(tmp_path / "one")
    with pytest.raises(ConfigError, match="holds no config.json; give one of the folders in it: one"):
        model_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no config.json; nor does any folder in it"):
        model_folder(tmp_path / "empty")


def test_cache_entry_of_hugging_face(tmp_path: Path) -> None:
    entry = tmp_path / "models--deepseek-ai--deepseek-moe-16b-chat"
    (entry / "blobs").mkdir(parents=True)
    (entry / "blobs" / "abc").write_text("{}")
    for revision in ("rev1", "rev2"):
        (entry / "snapshots" / revision).mkdir(parents=True)
        (entry / "snapshots" / revision / "config.json").symlink_to("../../blobs/abc")
    assert model_folder(entry / "snapshots" / "rev1") == entry / "snapshots" / "rev1"
    with pytest.raises(ConfigError, match="several checkpoints; give one: .*rev1.*rev2"):
        model_folder(entry)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("rev2\n")
    assert model_folder(entry) == entry / "snapshots" / "rev2"
    assert model_folder(entry / "snapshots") == entry / "snapshots" / "rev2"


def test_unfinished_cache_entry(tmp_path: Path) -> None:
    (tmp_path / "snapshots" / "rev").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds no finished download"):
        model_folder(tmp_path)


class FakeHub(ModuleType):
    """Stands for modelscope or huggingface_hub."""

    def __init__(self, name: str, result: Path | Exception) -> None:
        super().__init__(name)
        self.result = result
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def snapshot_download(self, name: str, **options: Any) -> str:
        self.calls.append((name, options))
        if isinstance(self.result, Exception):
            raise self.result
        return str(self.result)


def install(monkeypatch: pytest.MonkeyPatch, name: str, result: Path | Exception) -> FakeHub:
    hub = FakeHub(name, result)
    monkeypatch.setitem(sys.modules, name, hub)
    return hub


def remove(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)  # makes an import raise ModuleNotFoundError


def test_download_prefers_modelscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = install(monkeypatch, "modelscope", checkpoint(tmp_path / "m"))
    second = install(monkeypatch, "huggingface_hub", checkpoint(tmp_path / "h"))
    assert download("deepseek-moe-16b-chat") == tmp_path / "m"
    assert first.calls == [(CHAT, {})] and not second.calls
    assert download(CHAT, hub="huggingface", folder="here") == tmp_path / "h"
    assert second.calls == [(CHAT, {"local_dir": "here"})]


def test_download_takes_the_package_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove(monkeypatch, "modelscope")
    install(monkeypatch, "huggingface_hub", checkpoint(tmp_path))
    assert download(CHAT) == tmp_path


def test_download_without_a_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    remove(monkeypatch, "modelscope", "huggingface_hub")
    with pytest.raises(ConfigError, match="needs modelscope or huggingface_hub, which is not installed: ") as caught:
        download(CHAT)
    assert str(caught.value).endswith(install_command("hub"))
    with pytest.raises(ConfigError, match=r"needs modelscope, which is not installed"):
        download(CHAT, hub="modelscope")


def test_failed_download_names_model_hub_and_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "modelscope", ConnectionError("Name or service not known\nmore"))
    with pytest.raises(CheckpointError) as failure:
        download(CHAT)
    message = str(failure.value)
    assert f"{CHAT} could not be downloaded with modelscope: ConnectionError: Name or service not known." in message
    assert "more" not in message and "HF_ENDPOINT" in message


def test_download_refuses_what_is_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'/data/mine' is no model name such as"):
        download("/data/mine")
    with pytest.raises(ConfigError, match="hub 'github' is unknown, but only modelscope, huggingface are supported"):
        download(CHAT, hub="github")
