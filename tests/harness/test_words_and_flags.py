"""Commands for several hosts, what words must agree with, and the flags after them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atb_models.errors import ConfigError
from atb_models.layers.storage import METHODS
from atb_models.models.dtypes import KV_DTYPES
from atb_models.models.families import FAMILIES
from modeltest.command import cases, checks, options
from modeltest.command.cases import Run
from tests.harness.typed import BOOLQ, SPEED, refusal


class TestSeveralHosts:
    """rank_table world_size node_num rank_id_start master_addr in place of chip_num."""

    @pytest.fixture
    def table(self, tmp_path: Path) -> Path:
        """Two hosts of ten devices."""
        hosts = [{"server_id": f"10.0.0.{host}", "device": [{}] * 10} for host in range(2)]
        path = tmp_path / "rank table.json"
        path.write_text(json.dumps({"server_count": "2", "server_list": hosts}))
        return path

    def test_words(self, parse: Any, table: Path) -> None:
        run = parse(*BOOLQ, "W", str(table), "20", "2", "10", "10.0.0.1", "4096")
        assert run.nodes == cases.Nodes(table, 20, 2, 10, "10.0.0.1")
        assert (run.chips, run.nodes.per_node, run.max_position_embedding) == (20, 10, 4096)

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["20", "3", "0", "h"], "world_size 20 cannot be split evenly over node_num 3 hosts"),
            (["20", "2", "5", "h"], "rank_id_start 5 is the first rank of no host; they start at 0, 10"),
            (["20", "2", "20", "h"], "rank_id_start 20 is the first rank of no host; they start at 0, 10"),
            (["20", "4", "0", "h"], "node_num 4 contradicts {table}, which lists 2 hosts"),
            (["16", "2", "0", "h"], "world_size 16 contradicts {table}, which lists 20 devices"),
            (["20", "2", "x", "h"], "word 9 'x' is not known there; expected: rank_id_start"),
            (["20", "2", "0"], "word 10 is missing; expected there: master_addr"),
        ],
    )
    def test_contradictions(self, parse: Any, table: Path, words: list[str], said: str) -> None:
        assert refusal(parse, *BOOLQ, "W", str(table), *words).startswith(said.format(table=table))

    def test_a_file_that_is_no_rank_table(self, parse: Any, tmp_path: Path) -> None:
        file = tmp_path / "x.json"
        for text in ("", "{}", "[]", '{"server_list": [{}]}', '{"server_list": [1]}'):
            file.write_text(text)
            said = refusal(parse, *BOOLQ, "W", str(file), "20", "2", "0", "h")
            assert said.startswith(f"word 6 {str(file)!r} is no rank table: ")


class TestChecks:
    """What the words must agree with."""

    @pytest.mark.parametrize(
        ("name", "family"),
        [("qwen", "'qwen2_moe' or 'qwen2' or 'qwen3' or 'qwen3_moe'"), ("mixtral", "'mixtral'")],
    )
    def test_another_family(self, parse: Any, demo: Path, name: str, family: str) -> None:
        checks.check_family(parse(*BOOLQ, "W", "8"))
        with pytest.raises(ConfigError) as caught:
            checks.check_family(parse("pa_fp16", "full_BoolQ", "1", name, "W", "8"))
        assert str(caught.value) == (
            f"model_name {name} is for model_type {family}, but {demo} has 'deepseek'; say deepseek"
        )

    @pytest.mark.parametrize("name", [*FAMILIES, "qwen", "deepseekv2", "deepseekv3"])
    def test_every_type_has_its_name_and_mindies(self, parse: Any, tmp_path: Path, name: str) -> None:
        types = {"qwen": "qwen3_moe", "deepseekv2": "deepseek_v2", "deepseekv3": "deepseek_v3"}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": types.get(name, name)}))
        checks.check_family(parse("pa_fp16", "full_BoolQ", "1", name, str(tmp_path), "8"))

    @pytest.mark.parametrize(
        ("found", "names"), [("qwen3", "qwen3 or qwen"), ("deepseek_v3", "deepseek_v3 or deepseekv3")]
    )
    def test_the_names_of_a_type_are_told(self, parse: Any, tmp_path: Path, found: str, names: str) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": found}))
        with pytest.raises(ConfigError, match=f"has '{found}'; say {names}$"):
            checks.check_family(parse(*BOOLQ, str(tmp_path), "8"))

    def test_a_family_that_is_not_supported(self, parse: Any, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "gemma"}')
        with pytest.raises(ConfigError, match=f"has 'gemma'; only {', '.join(FAMILIES)} are supported"):
            checks.check_family(parse(*BOOLQ, str(tmp_path), "8"))

    def test_devices(self, parse: Any, clean_environ: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0,1,2,3")
        checks.check_devices(parse(*BOOLQ, "W", "4"))
        with pytest.raises(ConfigError) as caught:
            checks.check_devices(parse(*BOOLQ, "W", "8"))
        assert str(caught.value) == (
            "chip_num 8 contradicts ASCEND_RT_VISIBLE_DEVICES=0,1,2,3, which names 4 devices; change one"
        )

    @pytest.mark.parametrize("chips", ["1", "2"])
    def test_ranks_of_torchrun(
        self, parse: Any, clean_environ: None, monkeypatch: pytest.MonkeyPatch, chips: str
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "4")
        checks.check_devices(parse(*BOOLQ, "W", "4"))
        with pytest.raises(ConfigError, match=f"chip_num {chips} does not match torchrun's WORLD_SIZE 4; make them eq"):
            checks.check_devices(parse(*BOOLQ, "W", chips))


class TestOptions:
    @pytest.fixture
    def run(self, parse: Any) -> Run:
        return parse(*BOOLQ, "W", "8")

    def test_follow_the_words(self) -> None:
        assert options.split(["a", "-1", "--limit", "3"]) == (["a", "-1"], ["--limit", "3"])
        assert options.split(["a"]) == (["a"], [])

    def test_values(self, run: Run) -> None:
        flags = ["--limit", "40", "--resume", "--data_dir", "a b", "--output_dir=out", "--device", "cpu"]
        more = ["--load_format", "dummy", "--config_overrides", '{"num_hidden_layers": 4}', "--kv_blocks", "9"]
        more += ["--quantize", "w8a16", "--kv_dtype", "int8"]
        assert options.parse([*flags, *more, "--prefix_cache"], run) == cases.Options(
            limit=40, resume=True, data_dir=Path("a b"), output_dir=Path("out"), device="cpu", load_format="dummy",
            config_overrides={"num_hidden_layers": 4}, kv_blocks=9, prefix_cache=True, quantize="w8a16",
            kv_dtype="int8",
        )  # fmt: skip
        assert options.parse([], run) == cases.Options()

    def test_of_the_other_modes(self, parse: Any) -> None:
        code = parse("pa_fp16", "full_HumanEval", "1", "deepseek", "W", "8")
        assert options.parse(["--allow_code_execution"], code).allow_code_execution
        flags = ["--seed", "0", "--chip", "all", "--chips_file", "c.json", "--no_plot"]
        speed = options.parse(flags, parse(*SPEED, "1", "deepseek", "W", "8"))
        assert speed == cases.Options(seed=0, chip="all", chips_file="c.json", no_plot=True)

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (["--limits", "3"], "unknown option --limits; did you mean --limit?"),
            (["--resume", "more"], "unexpected 'more': options come after the words"),
            (["--limit", "0"], "argument --limit: must be a whole number of 1 or more, not '0'"),
            (["--limit", "9" * 5000], "argument --limit: must be a whole number of 1 or more, not '999"),
            (["--limit"], "argument --limit: expected one argument"),
            (["--output_dir", "~no-such-user/x"], "argument --output_dir: '~no-such-user/x' is in the home"),
            (["--device", "gpu"], "argument --device: must be one of npu, cuda, cpu, not 'gpu'"),
            (["--quantize", "w4"], "argument --quantize: must be one of w8a16, w4a16, w8a8_dynamic, not 'w4'"),
            (["--kv_dtype", "fp8"], "argument --kv_dtype: must be one of auto, int8, not 'fp8'"),
            (["--config_overrides", "{"], "argument --config_overrides: it is not valid JSON: "),
            (["--config_overrides", "[]"], "argument --config_overrides: must be a JSON object"),
            (["--allow_code_execution"], "--allow_code_execution is an option of full_HumanEval, not of full_BoolQ"),
            (["--seed", "1"], "--seed is an option of performance modes, not of full_BoolQ"),
        ],
    )
    def test_mistakes(self, run: Run, flags: list[str], said: str) -> None:
        with pytest.raises(ConfigError) as caught:
            options.parse(flags, run)
        assert str(caught.value).startswith(said)


def test_what_may_be_stored_otherwise_is_the_engines_choice() -> None:
    assert options.QUANTIZE == tuple(METHODS)
    assert options.KV_DTYPES == KV_DTYPES
