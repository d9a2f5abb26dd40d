"""From flags to an EngineConfig: the same for every program that loads a model."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from atb_models.command import engine_options
from atb_models.command.engine_options import engine_config, find_checkpoint, model_name
from atb_models.command.model_flags import cache_flags, model_flags
from atb_models.command.parser import Parser
from atb_models.engine.config import EngineConfig
from atb_models.errors import ConfigError

pytestmark = pytest.mark.usefixtures("clean_environ")


def parse(*argv: str) -> Namespace:
    parser = Parser()
    group = parser.add_argument_group("model")
    model_flags(group)
    cache_flags(group)
    return parser.parse(argv)


def config(*argv: str, max_batch_size: int = 64) -> EngineConfig:
    return engine_config(parse(*argv), max_batch_size=max_batch_size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.write_checkpoint(tmp_path / "weights")
    return tmp_path / "weights"


def test_no_flags_are_the_defaults_of_the_engine() -> None:
    assert config() == EngineConfig()
    assert engine_config(parse(), max_batch_size=3, max_seq_len=99) == EngineConfig(max_batch_size=3, max_seq_len=99)


# flag -> what is typed, the field and its value
FLAGS = {
    "chat_template": ("t.jinja", "chat_template", "t.jinja"),
    "dtype": ("bf16", "dtype", "bf16"),
    "device": ("cpu", "device", "cpu"),
    "tp": ("4", "tp", 4),
    "load_format": ("dummy", "load_format", "dummy"),
    "quantize": ("w8a16", "quantize", "w8a16"),
    "graph_capture": ("", "graph_capture", True),
    "no_graph_capture": ("", "graph_capture", False),
    "deterministic": ("", "deterministic", True),
    "trust_remote_code": ("", "trust_remote_code", True),
    "config_overrides": ('{"num_hidden_layers": 4}', "config_overrides", {"num_hidden_layers": 4}),
    "max_position_embeddings": ("99", "config_overrides", {"max_position_embeddings": 99}),
    "max_prefill_tokens": ("64", "max_prefill_tokens", 64),
    "block_size": ("16", "block_size", 16),
    "kv_blocks": ("7", "kv_blocks", 7),
    "kv_dtype": ("int8", "kv_dtype", "int8"),
    "prefix_cache": ("off", "prefix_cache", False),
}
OTHERS = {"help", "model_path", "download", "load_tokenizer"}  # of the checkpoint, tested below; not the engine's


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_changes_its_field_alone(flag: str) -> None:
    typed, field, value = FLAGS[flag]
    assert config(f"--{flag}", *[typed] * bool(typed)) == replace(EngineConfig(), **{field: value})


def test_every_flag_is_tested() -> None:
    parser = Parser()
    model_flags(parser.add_argument_group("model"))
    cache_flags(parser.add_argument_group("cache"))
    flags = {word.removeprefix("--") for action in parser._actions for word in action.option_strings if word[1] == "-"}
    assert flags == {*FLAGS, *OTHERS}


def test_positions_join_the_other_overrides() -> None:
    overrides = config("--config_overrides", '{"num_hidden_layers": 4}', "--max_position_embeddings", "9")
    assert overrides.config_overrides == {"num_hidden_layers": 4, "max_position_embeddings": 9}


def test_a_benchmark_turns_the_prefix_cache_off_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATB_LLM_BENCHMARK_ENABLE", "1")
    assert not config().prefix_cache and config("--prefix_cache", "on").prefix_cache


def test_ranks_are_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert config().tp == config("--tp", "4").tp == 4
    for other in ("1", "2"):
        with pytest.raises(ConfigError, match=f"--tp {other} does not match torchrun's WORLD_SIZE 4"):
            config("--tp", other)


def test_the_checkpoint_is_found_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    found = engine_options.model_folder
    monkeypatch.setattr(engine_options, "model_folder", lambda path: looks.append(path) or found(path))
    assert config("--model_path", f"{folder}/").model_path == str(folder)
    assert looks == [f"{folder}/"]


@pytest.mark.parametrize("argv, message", [
    (["--model_path", "/nowhere"], "/nowhere"),
    (["--download"], "--download needs a --model_path that names what to fetch"),
])  # fmt: skip
def test_no_checkpoint(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(*argv)


def test_a_name_is_fetched_where_that_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_options, "download", lambda name: folder / name.replace("/", "-"))
    assert config("--model_path", "org/name", "--download").model_path == str(folder / "org-name")
    assert config("--model_path", str(folder), "--download").model_path == str(folder)


def test_a_name_in_the_variable_is_fetched_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_options, "download", lambda name: folder / name.replace("/", "-"))
    monkeypatch.setenv("ATB_LAUNCHER_MODEL_PATH", "org/name")
    assert config("--download").model_path == str(folder / "org-name")
    with pytest.raises(ConfigError, match="^ATB_LAUNCHER_MODEL_PATH: model_path org/name is no folder"):
        config()
    monkeypatch.setenv("ATB_LAUNCHER_MODEL_PATH", str(folder))
    assert config("--download").model_path == str(folder)


def test_a_rank_takes_what_its_launcher_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATB_LAUNCHER_MODEL_PATH", str(folder))
    monkeypatch.setenv("ATB_LAUNCHER_ASKED", "org/name")
    assert find_checkpoint("org/name", fetch=True) == find_checkpoint(None, fetch=False) == str(folder)


def test_what_a_launcher_found_is_no_answer_to_another_path(
    folder: Path, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_options, "download", lambda name: folder / name.replace("/", "-"))
    monkeypatch.setenv("ATB_LAUNCHER_MODEL_PATH", str(folder))
    for asked in (None, "org/another"):
        if asked is not None:
            monkeypatch.setenv("ATB_LAUNCHER_ASKED", asked)
        assert find_checkpoint(str(demo), fetch=False) == str(demo)
        assert find_checkpoint("org/name", fetch=True) == str(folder / "org-name")
    monkeypatch.setenv("ATB_LAUNCHER_MODEL_PATH", "/nowhere")
    with pytest.raises(ConfigError, match="^ATB_LAUNCHER_MODEL_PATH: model_path /nowhere is no folder"):
        find_checkpoint(None, fetch=False)


def test_a_script_of_a_model_needs_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATB_LAUNCHER_MODEL", "deepseek-ai/deepseek-moe-16b-base")
    with pytest.raises(ConfigError, match="deepseek-moe-16b-base"):
        config()


def test_a_model_is_called_as_its_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert model_name(config()) == "demo"
    assert {model_name(config("--model_path", path)) for path in (str(folder), f"{folder}/", ".")} == {"weights"}
