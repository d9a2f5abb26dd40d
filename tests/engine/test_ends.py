"""An answer ends with each token that any of the checkpoint's files names as its end."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from atb_models import LLM, SamplingParams
from atb_models.demo import demo_path

EOS, OTHER, THIRD = 1, 7, 9  # of the embedded checkpoint's vocabulary; the first ends its answers
QUESTION = [{"role": "user", "content": "Who is the CEO of Google?"}]
DIFFER = "the files differ in the token that ends an answer"


def checkpoint(folder: Path, **files: dict[str, Any] | None) -> Path:
    """The embedded checkpoint with fields replaced, and those that are None left out; a whole file where it is None."""
    target = folder / "model"
    shutil.copytree(demo_path(), target)
    for stem, fields in files.items():
        path = target / f"{stem}.json"
        if fields is None:
            path.unlink()
            continue
        old = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({name: value for name, value in (old | fields).items() if value is not None}))
    return target


def ends(path: Path, **options: Any) -> set[int]:
    with LLM(path, device="cpu", **options) as llm:
        return set(llm.engine.eos_token_ids)


def eos(index: int | None) -> dict[str, Any]:
    return {"eos_token_id": index}


@pytest.mark.parametrize(
    ("files", "expected", "said"),
    [
        ({}, {EOS}, None),
        ({"config": eos(OTHER), "generation_config": eos(OTHER)}, {EOS, OTHER},
         "generation_config.json 7, config.json 7, tokenizer_config.json 1"),
        ({"config": eos(None), "generation_config": eos(None)}, {EOS}, None),
        ({"config": eos(None), "generation_config": None}, {EOS}, None),
        ({"config": eos(OTHER)}, {EOS, OTHER}, "generation_config.json 1, config.json 7, tokenizer_config.json 1"),
        ({"config": eos(OTHER), "generation_config": None}, {EOS, OTHER}, "config.json 7, tokenizer_config.json 1"),
        ({"generation_config": {"eos_token_id": [EOS, OTHER]}}, {EOS, OTHER}, None),
        ({"special_tokens_map": {"eos_token": "3"}}, {EOS, "3"}, "special_tokens_map.json"),
        ({"special_tokens_map": {"eos_token": {"content": "3", "lstrip": False}}}, {EOS, "3"}, "_map.json"),
        ({"tokenizer_config": {"eos_token": None}, "config": eos(OTHER), "generation_config": None}, {OTHER}, None),
    ],
)  # fmt: skip
def test_every_file_counts(
    tmp_path: Path,
    files: dict[str, Any],
    expected: set[int | str],
    said: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = checkpoint(tmp_path, **files)
    with LLM(path, device="cpu") as llm:
        assert llm.tokenizer is not None
        vocab = {llm.tokenizer.id_to_token(index): index for index in range(2500)}
        assert llm.engine.eos_token_ids == {vocab[end] if isinstance(end, str) else end for end in expected}
    warnings = [record.getMessage() for record in caplog.records if DIFFER in record.getMessage()]
    assert [said in warning for warning in warnings] == ([] if said is None else [True]) if said else warnings == []


def test_the_answer_of_a_fine_tune_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = checkpoint(tmp_path, config=eos(OTHER), generation_config=eos(OTHER))
    with LLM(path, device="cpu") as llm:
        (output,) = llm.chat([QUESTION], SamplingParams(max_tokens=40))
        (endless,) = llm.chat([QUESTION], SamplingParams(max_tokens=15, ignore_eos=True))
    assert (output.finish_reason, output.token_ids[-1]) == ("stop", EOS) and len(output.token_ids) < 15
    assert endless.finish_reason == "length"


def test_overrides_say_it_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = checkpoint(tmp_path, config=eos(OTHER), generation_config=eos(OTHER))
    with caplog.at_level(logging.WARNING):
        assert ends(path, config_overrides={"eos_token_id": [THIRD]}) == {THIRD}
    assert DIFFER not in caplog.text


def test_a_generation_config_that_is_ignored_names_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path, generation_config=eos(OTHER))
    assert ends(path) == {EOS, OTHER}
    monkeypatch.setenv("REMOVE_GENERATION_CONFIG_DICT", "1")
    assert ends(path) == {EOS}


def test_an_end_that_the_model_cannot_give_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = checkpoint(tmp_path, tokenizer_config={"eos_token": "<|new end|>"})
    (end,) = ends(path) - {EOS}
    assert f"the tokenizer's eos token id {end} is outside vocab_size" in caplog.text


def test_a_checkpoint_without_a_tokenizer(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, config=eos(OTHER), tokenizer_config=None, tokenizer=None)
    assert ends(path) == {EOS, OTHER}
