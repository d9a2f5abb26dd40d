"""What is recorded beside the results, and where: environment, documents, folders, progress."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import atb_models
from atb_models import LLM
from atb_models.errors import ConfigError
from modeltest import environment, model, places, progress, record
from modeltest.command.cases import Nodes, Options, Run

RESULTS = {"set": "中", "n": 4, "correct": 3, "accuracy": 0.75, "data": [], "questions": []}


@pytest.fixture
def run(demo: Path) -> Run:
    return Run("fp16", "full_BoolQ", "deepseek", demo, 8, ((1, 4),))


@pytest.fixture
def sample_record(tmp_path: Path, run: Run) -> Path:
    path = tmp_path / "new folder" / "result.json"
    nodes = Nodes(Path("/a b/table.json"), 8, 2, 0, "10.0.0.1")
    run = Run("fp16", "full_BoolQ", "deepseek", run.weight_dir, 8, ((1, 4),), nodes=nodes)
    record.write_record(path, "accuracy", run, Options(data_dir=Path("d")), {"git": None}, RESULTS)
    return path


class TestFacts:
    def test_versions_device_and_host(self, demo: Path) -> None:
        with LLM(demo, dtype="fp32", device="cpu", max_seq_len=8) as llm:
            facts = environment.facts(llm)
        assert facts["versions"]["python"].split(".")[:2] == [str(number) for number in sys.version_info[:2]]
        assert facts["versions"]["atb_models"] == atb_models.__version__
        assert facts["versions"]["torch"].startswith("2.") and set(environment.PACKAGES) < set(facts["versions"])
        assert facts["device"] == {"type": "cpu", "name": facts["host"]["cpu"]} and facts["device"]["name"]
        assert facts["quantization"] is None
        assert facts["host"]["cores"] >= 1 and facts["host"]["memory_bytes"] > 1 << 28
        assert json.loads(json.dumps(facts)) == facts

    def test_variables_without_secrets(self, clean_environ: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ATB_LLM_BENCHMARK_ENABLE", "1")
        monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0,1")
        monkeypatch.setenv("HCCL_NEW", "x")
        monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy:3128")
        monkeypatch.setenv("MY_API_TOKEN", "secret")
        monkeypatch.setenv("ATB_LAUNCHER_PID", "1")
        facts = environment.facts(None)
        wanted = {"ATB_LLM_BENCHMARK_ENABLE": "1", "ASCEND_RT_VISIBLE_DEVICES": "0,1", "HCCL_NEW": "x"}
        assert wanted.items() <= facts["variables"].items() and "ATB_LAUNCHER_PID" not in facts["variables"]
        assert facts["variables"]["HTTPS_PROXY"] == "http://***@proxy:3128" and facts["device"] is None
        assert "secret" not in json.dumps(facts)

    def test_revision_of_a_checkout(self, tmp_path: Path) -> None:
        """A repository that knows the package's files, before and after a change."""
        git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
        (tmp_path / "__init__.py").touch()
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
            subprocess.run([*git, *words], check=True)
        revision = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
        assert environment.revision(tmp_path) == {"revision": revision.strip(), "dirty": False}
        (tmp_path / "__init__.py").write_text("1")
        assert environment.revision(tmp_path) == {"revision": revision.strip(), "dirty": True}

    def test_no_revision_of_a_repository_around_an_installed_package(self, tmp_path: Path) -> None:
        subprocess.run(["git", "-C", str(tmp_path), "init", "-q"], check=True)
        package = tmp_path / "venv" / "atb_models"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        assert environment.revision(package) is None

    def test_no_revision_without_git(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert environment.revision(tmp_path) is None
        monkeypatch.setenv("PATH", "")
        assert environment.revision(places.HOME) is None


class TestRecord:
    def test_comes_back(self, sample_record: Path, demo: Path) -> None:
        document = record.read_record(sample_record)
        assert (document["schema"], document["kind"], document["results"]) == (1, "accuracy", RESULTS)
        assert document["run"]["weight_dir"] == str(demo) and document["run"]["batch_sizes"] == [[1, 4]]
        assert document["run"]["nodes"]["rank_table"] == "/a b/table.json" and document["options"]["data_dir"] == "d"
        assert document["created"].endswith("+00:00") and document["modeltest"] == atb_models.__version__

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"schema": 2}, "has schema 2, this modeltest reads 1"),
            ({"kind": "recipe"}, "is no result of modeltest: it lacks kind"),
            ({"results": None}, "is no result of modeltest"),
            ({"results": {"set": "x", "n": 1}}, "is incomplete: its results lack correct, accuracy, data, questions;"),
        ],
    )
    def test_other_documents(self, sample_record: Path, change: dict[str, Any], said: str) -> None:
        sample_record.write_text(json.dumps(json.loads(sample_record.read_text()) | change))
        with pytest.raises(ConfigError, match=said):
            record.read_record(sample_record)

    def test_a_path_that_is_no_utf8(self, tmp_path: Path, run: Run) -> None:
        folder = Path(os.fsdecode(b"caf\xe9"))
        record.write_record(tmp_path / "r.json", "accuracy", run, Options(output_dir=folder), {}, {})
        assert json.loads((tmp_path / "r.json").read_text("utf-8"))["options"]["output_dir"] == str(folder)

    @pytest.mark.parametrize("text", ["", "[1]", "file,value\n"])
    def test_other_files(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ConfigError, match=f"no result of modeltest: {tmp_path / 'x.json'} "):
            record.read_record(tmp_path / "x.json")
        with pytest.raises(ConfigError, match=f"{tmp_path / 'none.json'} is no file; name the JSON file of a run"):
            record.read_record(tmp_path / "none.json")


class TestPlaces:
    def test_folders(self, run: Run) -> None:
        """As MindIE has them, with the device's word."""
        speed = Run("bf16", "performance_maxbs", "qwen", run.weight_dir, 1, ((1, 4),))
        beside = places.HOME / "outputs"
        npu, cuda = ({"device": {"type": kind}, "quantization": None} for kind in ("npu", "cuda"))
        assert places.folder("results", npu, run, Options()) == (
            beside / "results" / "NPU" / "precision_test" / "full_BoolQ" / "fp16" / "deepseek"
        )
        assert places.folder("debug", cuda, speed, Options(output_dir=Path("o"))) == (
            Path("o/debug/GPU/performance_test/performance_maxbs/bf16/qwen")
        )
        assert places.folder("data", cuda | {"quantization": "w8a8"}, speed, Options(output_dir=Path("o"))) == (
            Path("o/data/GPU/performance_test/performance_maxbs/bf16_w8a8/qwen")
        )

    def test_outputs_of_an_installed_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(places, "HOME", tmp_path)
        monkeypatch.chdir("/")
        assert places.outputs(Options()) == Path("/outputs")
        assert places.data_folder(Options(), "BoolQ") == Path("/data/boolq")

    def test_data(self) -> None:
        assert places.data_folder(Options(), "BoolQ") == places.HOME / "data" / "boolq"
        assert places.data_folder(Options(data_dir=Path("mine")), "BoolQ") == Path("mine")


class TestPositions:
    def test_override(self, demo: Path) -> None:
        def overrides(limit: int | None, given: dict[str, Any] | None) -> dict[str, Any] | None:
            run = Run("fp16", "full_BoolQ", "deepseek", demo, 1, ((1,),), max_position_embedding=limit)
            return model.config_overrides(run, Options(config_overrides=given))

        assert overrides(None, None) is None
        assert overrides(64, None) == {"max_position_embeddings": 64}
        assert overrides(64, {"max_position_embeddings": 64, "x": 1}) == {"max_position_embeddings": 64, "x": 1}
        with pytest.raises(ConfigError, match="max_position_embedding 64 contradicts 32 in --config_overrides"):
            overrides(64, {"max_position_embeddings": 32})


class TestProgress:
    def test_a_line_each_tenth(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        now = iter([0.0, 60.0, 120.0, 600.0])
        monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
        with progress.Bar(100, "full_BoolQ") as bar:
            for steps, note in ((5, "none"), (5, "accuracy 0.5"), (10, "accuracy 0.6"), (80, "accuracy 0.7")):
                bar.note(note)
                bar.update(steps)
        assert capsys.readouterr().err.splitlines() == [
            "full_BoolQ: 10/100, 9 min 0 s left, accuracy 0.5",
            "full_BoolQ: 20/100, 8 min 0 s left, accuracy 0.6",
            "full_BoolQ: 100/100, done, accuracy 0.7",
        ]

    def test_time_left_of_a_run_that_goes_on(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ten of the fifty steps that were left have taken ten seconds."""
        now = iter([0.0, 10.0])
        monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
        with progress.Bar(100, "x", done=50) as bar:
            bar.update(10)
        assert capsys.readouterr().err == "x: 60/100, 40 s left\n"

    def test_a_bar_on_a_terminal(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        with progress.Bar(4, "x") as bar:
            bar.note("accuracy 0.5")
            bar.update(4)
        assert "4/4" in (shown := capsys.readouterr().err) and "accuracy 0.5" in shown

    @pytest.mark.parametrize(
        ("seconds", "said"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (62, "1 min 2 s"), (7500, "2 h 5 min")]
    )
    def test_durations(self, seconds: float, said: str) -> None:
        assert progress.duration(seconds) == said
