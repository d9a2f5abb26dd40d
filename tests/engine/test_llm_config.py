"""`LLM` takes an EngineConfig or its fields, never both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from atb_models import LLM, SamplingParams
from atb_models.engine.config import EngineConfig
from atb_models.errors import ConfigError

PROMPT = [3, 14, 15, 9, 2, 6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.write_checkpoint(folder)
    return folder


@pytest.mark.parametrize("tp", [1, 2])
def test_a_config_and_its_fields_are_the_same_engine(folder: Path, tp: int) -> None:
    fields: dict[str, Any] = {"dtype": "fp32", "device": "cpu", "tp": tp, "block_size": 16, "kv_blocks": 9}
    makers: list[Callable[[], LLM]] = [lambda: LLM(EngineConfig(folder, **fields)), lambda: LLM(folder, **fields)]
    answers, configs = [], []
    for make in makers:
        with make() as llm:
            answers.append(llm.generate([PROMPT], SamplingParams(max_tokens=5))[0].token_ids)
            configs.append(llm.config)
            assert llm.metrics()["total_blocks"] == 9 and llm.size == tp
    assert answers[0] == answers[1] and len(answers[0]) == 5
    assert configs[0] == configs[1] == EngineConfig(str(folder), **fields, graph_capture=False)


@pytest.mark.parametrize("fields", [{"dtype": "bf16"}, {"dtype": "fp16"}, {"tp": 2, "kv_blocks": None}], ids=str)
def test_a_config_and_fields_are_refused_by_name(fields: dict[str, Any]) -> None:
    """Also where a field has its default's value: the config may say otherwise."""
    config = EngineConfig(dtype="fp32", device="cpu")
    with pytest.raises(ConfigError) as caught:
        LLM(config, **fields)
    first = next(iter(fields))
    assert str(caught.value) == (
        f"an EngineConfig and {', '.join(fields)} are both given; use dataclasses.replace(config, {first}=...)"
    )


def test_a_config_with_another_field_is_another_config(folder: Path) -> None:
    with LLM(replace(EngineConfig(folder, dtype="fp32", device="cpu"), block_size=16)) as llm:
        assert (llm.config.block_size, llm.config.dtype) == (16, "fp32")


def test_wrong_arguments_are_a_type_error(folder: Path) -> None:
    with pytest.raises(TypeError, match=r"LLM\.__init__\(\) got an unexpected keyword argument 'dtyp'"):
        LLM(folder, dtyp="fp32")
    with pytest.raises(TypeError, match="positional arguments"):
        LLM(folder, "fp32")


def test_a_path_is_a_text_between_processes(folder: Path) -> None:
    config = EngineConfig(folder)
    assert config.model_path == str(folder) and EngineConfig.from_json(config.to_json()) == config
