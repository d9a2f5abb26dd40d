"""The published models that plans know by name: their names, their parameters, and what the documents say of both."""

from __future__ import annotations

import pytest

from atb_models.models.config_reader import load_model_config
from atb_models.models.families import FAMILIES
from atb_models.plan.parameters import count_parameters
from atb_models.published import NAMES, folder_of, full_name, similar_names
from tests.documents.reading import ROOT, rows

# Thousands of millions: all parameters, and those of one token. From the models' published dimensions by formula; those
# of DeepSeek-V3 are without the layer for multi-token prediction.
PARAMETERS = {
    "allenai/OLMoE-1B-7B-0924": ("6.92", "1.28"),
    "deepseek-ai/DeepSeek-R1": ("671.0", "37.6"),
    "deepseek-ai/DeepSeek-V2": ("235.7", "21.4"),
    "deepseek-ai/DeepSeek-V2-Lite": ("15.71", "2.66"),
    "deepseek-ai/DeepSeek-V2-Lite-Chat": ("15.71", "2.66"),
    "deepseek-ai/DeepSeek-V3": ("671.0", "37.6"),
    "deepseek-ai/deepseek-moe-16b-base": ("16.38", "2.83"),
    "deepseek-ai/deepseek-moe-16b-chat": ("16.38", "2.83"),
    "meta-llama/Llama-2-7b-chat-hf": ("6.74", "6.74"),
    "meta-llama/Llama-2-7b-hf": ("6.74", "6.74"),
    "meta-llama/Llama-3.1-8B": ("8.03", "8.03"),
    "meta-llama/Llama-3.1-8B-Instruct": ("8.03", "8.03"),
    "mistralai/Mistral-7B-Instruct-v0.3": ("7.25", "7.25"),
    "mistralai/Mixtral-8x22B-Instruct-v0.1": ("140.6", "39.2"),
    "mistralai/Mixtral-8x22B-v0.1": ("140.6", "39.2"),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": ("46.70", "12.88"),
    "mistralai/Mixtral-8x7B-v0.1": ("46.70", "12.88"),
    "moonshotai/Moonlight-16B-A3B": ("15.96", "2.9"),
    "Qwen/Qwen1.5-MoE-A2.7B": ("14.32", "2.69"),
    "Qwen/Qwen1.5-MoE-A2.7B-Chat": ("14.32", "2.69"),
    "Qwen/Qwen2.5-0.5B": ("0.494", "0.494"),
    "Qwen/Qwen2.5-0.5B-Instruct": ("0.494", "0.494"),
    "Qwen/Qwen2.5-7B": ("7.62", "7.62"),
    "Qwen/Qwen2.5-7B-Instruct": ("7.62", "7.62"),
    "Qwen/Qwen3-0.6B": ("0.596", "0.596"),
    "Qwen/Qwen3-235B-A22B": ("235.1", "22.2"),
    "Qwen/Qwen3-30B-A3B": ("30.53", "3.35"),
    "Qwen/Qwen3-8B": ("8.19", "8.19"),
    "xverse/XVERSE-MoE-A4.2B": ("25.78", "4.23"),
}


def test_every_model_has_its_parameters_stated() -> None:
    assert set(NAMES) == set(PARAMETERS)


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name: str) -> None:
    counted = count_parameters(load_model_config(folder_of(name), log=False))
    stated = PARAMETERS[name]
    digits = [len(number.partition(".")[2]) for number in stated]
    assert tuple(f"{n / 1e9:.{d}f}" for n, d in zip(counted, digits, strict=True)) == stated


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_known(name: str, caplog: pytest.LogCaptureFixture) -> None:
    load_model_config(folder_of(name))
    assert "unknown fields" not in caplog.text


def test_every_family_has_a_model() -> None:
    types = {load_model_config(folder_of(name), log=False).model_type for name in NAMES}
    assert types == set(FAMILIES)


@pytest.mark.parametrize("document", ["docs/plan.md", "docs/plan.zh.md"])
def test_the_documents_list_them(document: str) -> None:
    listed = {row[0].strip("`"): (row[1], row[2]) for row in rows(document) if "/" in row[0] and len(row) == 3}
    assert listed == {name: (f"{total} B", f"{active} B") for name, (total, active) in PARAMETERS.items()}


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-30B-A3B"),
        ("qwen/qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B"),
        ("Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("Qwen3-30B", None),
        ("someone/Qwen3-30B-A3B", None),
        ("/data/Qwen/Qwen3-30B-A3B", None),
        ("", None),
    ],
)
def test_names_as_they_are_typed(typed: str, name: str | None) -> None:
    assert full_name(typed) == name


def test_similar_names() -> None:
    assert similar_names("Qwen/Qwen3-30B")[0] == "Qwen/Qwen3-30B-A3B"
    assert similar_names("/data/llama-3.1-8b/")[0] == "meta-llama/Llama-3.1-8B"
    assert similar_names("/data/mine") == []


def test_files_are_short_and_hold_fields_only() -> None:
    files = [path for path in (ROOT / "atb_models/published").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {path.name for path in files} == {"__init__.py", "config.json"}
    assert all(len(path.read_text("utf-8").splitlines()) < 70 for path in files)
