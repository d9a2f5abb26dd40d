"""generation_config.json: ids that end an answer, sampling defaults, and what is not applied."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import tiny

from atb_models.errors import CheckpointError, ConfigError
from atb_models.models.config import ModelConfig
from atb_models.models.config_reader import load_model_config


def load(folder: Path, generation: dict[str, Any] | None, **fields: Any) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps({**tiny.DEEPSEEK, **fields}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return load_model_config(folder)


@pytest.mark.parametrize(
    ("eos", "expected"), [(7, (7,)), ([7, 8], (7, 8)), ([[7], [8]], (7, 8)), ([7, 7], (7,)), (None, ()), (0, (0,))]
)
def test_eos_is_an_id_or_a_list(tmp_path: Path, eos: Any, expected: tuple[int, ...]) -> None:
    assert load(tmp_path, {"eos_token_id": eos}, eos_token_id=None).eos_token_ids == expected


def test_ids_fall_back_to_config(tmp_path: Path) -> None:
    config = load(tmp_path, {}, bos_token_id=5, eos_token_id=[6, 9])
    assert (config.bos_token_id, config.eos_token_ids) == (5, (6, 9))
    assert load(tmp_path, None, eos_token_id=None).eos_token_ids == ()
    assert load(tmp_path, {"bos_token_id": 4}).bos_token_id == 4


def test_override_of_eos_wins_over_generation_config(tmp_path: Path) -> None:
    load(tmp_path, {"eos_token_id": 7})
    assert load_model_config(tmp_path, {"eos_token_id": 9}).eos_token_ids == (9,)


def test_sampling_defaults(tmp_path: Path) -> None:
    given = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    assert load(tmp_path, given).generation == given
    assert load(tmp_path, {"temperature": 0.7, "max_new_tokens": 64}).generation == {
        "do_sample": False,
        "temperature": 0.7,
        "max_new_tokens": 64,
    }


def test_without_the_file_the_sampling_fields_of_config_count(tmp_path: Path) -> None:
    assert load(tmp_path, None, do_sample=True, top_k=3).generation == {"do_sample": True, "top_k": 3}
    assert load(tmp_path, {}, do_sample=True, top_k=3).generation == {"do_sample": False}


def test_the_file_can_be_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOVE_GENERATION_CONFIG_DICT", "1")
    config = load(tmp_path, {"eos_token_id": 7, "do_sample": True, "num_beams": 4})
    assert (config.eos_token_ids, config.generation) == ((2,), {})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "hot"),
        ("temperature", -1),
        ("top_p", 0),
        ("top_p", 1.5),
        ("min_p", 2),
        ("top_k", 1.5),
        ("repetition_penalty", 0),
        ("presence_penalty", -3),
        ("frequency_penalty", 2.5),
        ("max_new_tokens", 0),
        ("do_sample", "yes"),
        ("eos_token_id", "</s>"),
        ("eos_token_id", [[1, 2]]),
        ("bos_token_id", -1),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(tmp_path, {field: value})
    assert "generation_config.json" in str(refusal.value)
    assert field in str(refusal.value) and repr(value) in str(refusal.value)


def test_what_is_not_applied_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quiet = {"num_beams": 1, "min_length": 0, "_from_model_config": True, "length_penalty": 1.0, "typical_p": 1.0}
    load(tmp_path, {**quiet, "bad_words_ids": None, "pad_token_id": 0})
    assert not caplog.records
    load(tmp_path, {"num_beams": 4, "suppress_tokens": [3], "made_up": 1})
    messages = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(messages) == 3
    assert "num_beams=4 is not supported and not applied" in messages[0]
    assert "suppress_tokens=[3]" in messages[1] and "made_up" in messages[2]


def test_ids_outside_the_vocabulary_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(tmp_path, {"eos_token_id": [2, 256]})
    assert [record.message.split(": ")[-1] for record in caplog.records] == [
        "bos or eos token id 256 is outside vocab_size 256"
    ]


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.DEEPSEEK))
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json is not valid JSON"):
        load_model_config(tmp_path)
