"""The published models' own generation defaults: in force in Python, greedy in the launcher unless asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import write_checkpoint

from atb_models import LLM, SamplingParams
from atb_models.command.sampling import sampling_params
from atb_models.errors import CapacityError
from atb_models.launcher.args import parse_args
from atb_models.models.config import ModelConfig
from atb_models.models.config_reader import load_model_config

GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
QWEN = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
# its temperature is not in force: do_sample is false
XVERSE = {"temperature": 0.0, "top_k": 30, "top_p": 0.85, "repetition_penalty": 1.1}
DEFAULTS = {
    "deepseek-moe-16b-chat": (GREEDY, None, (100001,)),
    "qwen1.5-moe-a2.7b-chat": (QWEN, None, (151645, 151643)),
    "xverse-moe-a4.2b": (XVERSE, 20480, (3,)),
}


@pytest.fixture(params=DEFAULTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def config(shared: Path, name: str) -> ModelConfig:
    return load_model_config(shared / "headers" / name)


def fields(params: SamplingParams) -> dict[str, Any]:
    return {field: getattr(params, field) for field in GREEDY}


def launched(flags: str, config: ModelConfig) -> SamplingParams:
    return sampling_params(parse_args(flags.split()), config.generation).resolve(config.generation)


def test_python_takes_the_checkpoints_defaults(name: str, config: ModelConfig) -> None:
    values, max_tokens, eos = DEFAULTS[name]
    resolved = SamplingParams().resolve(config.generation)
    assert (fields(resolved), resolved.max_tokens, config.eos_token_ids) == (values, max_tokens, eos)


def test_the_launcher_is_greedy_unless_asked(name: str, config: ModelConfig) -> None:
    assert fields(launched("", config)) == GREEDY
    assert fields(launched("--use_generation_config", config)) == DEFAULTS[name][0]
    assert launched("--use_generation_config", config).max_tokens == 20
    assert fields(launched("--do_sample", config)) == {**GREEDY, "temperature": 1.0}
    assert fields(launched("--top_p 0.5", config)) == {**GREEDY, "temperature": 1.0, "top_p": 0.5}


def test_sampling_that_is_asked_for_takes_the_checkpoints_temperature(name: str, config: ModelConfig) -> None:
    """Even one that its do_sample false leaves without effect: the flag says otherwise."""
    own = config.generation.get("temperature") or 1.0
    for flag in ("--do_sample", "--top_k 7"):
        assert launched(f"--use_generation_config {flag}", config).temperature == own
    assert launched("--use_generation_config --do_sample --temperature 0.9", config).temperature == 0.9


@pytest.mark.parametrize("document", ["docs/models.md", "docs/models.zh.md"])
def test_the_page_of_the_models_has_them(root: Path, document: str, name: str) -> None:
    """| checkpoint | decoding | temperature | top_k | top_p | repetition_penalty | new tokens | ends at token |"""
    values, max_tokens, eos = DEFAULTS[name]
    lines = (root / document).read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    (row,) = (row for row in rows if len(row) == 8 and name.startswith(row[0].lower()))
    if values["temperature"]:
        assert [float(cell) for cell in row[2:5]] == [values[field] for field in ("temperature", "top_k", "top_p")]
    else:  # then what filters samples has no effect
        assert row[2:5] == ["", "", ""] and row[1].startswith(("greedy", "贪心"))
    assert float(row[5]) == values["repetition_penalty"]
    assert row[6] == str(max_tokens) or (max_tokens is None and not row[6].isdigit())
    assert [int(token) for token in row[7].replace("、", ",").split(",")] == list(eos)


def test_an_answers_default_length_ends_where_the_cache_does(tmp_path: Path) -> None:
    """XVERSE's 20,480 new tokens are more than its positions; nobody who left them out may be refused for them."""
    write_checkpoint(tmp_path, family="xverse", generation={"max_new_tokens": 20480, "eos_token_id": 255})
    with LLM(tmp_path, device="cpu", block_size=16, kv_blocks=4) as llm:
        assert len(llm.generate([[5] * 10], SamplingParams(ignore_eos=True))[0].token_ids) == 4 * 16 + 1 - 10
        with pytest.raises(CapacityError, match="needs 32 KV blocks of 16 tokens"):
            llm.generate([[5] * 10], SamplingParams(max_tokens=20480))


def test_either_end_of_an_answer_counts(tmp_path: Path) -> None:
    """Qwen has two: the end of a turn and the end of a text."""
    write_checkpoint(tmp_path, family="qwen", generation={"eos_token_id": [7, 9]})
    with LLM(tmp_path, dtype="fp32", device="cpu") as llm:
        free = llm.generate([[5, 6]], SamplingParams(max_tokens=30, ignore_eos=True))[0].token_ids
    for place in (3, 5):
        end = free.index(free[place])
        write_checkpoint(tmp_path, family="qwen", generation={"eos_token_id": [7, free[place]]})
        with LLM(tmp_path, dtype="fp32", device="cpu") as llm:
            (output,) = llm.generate([[5, 6]], SamplingParams(max_tokens=30))
        assert (len(output.token_ids), output.finish_reason) == (end + 1, "stop")
