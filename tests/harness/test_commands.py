"""run.sh and its other names from outside: how they start, refuse, speak and end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modeltest.command import nodes
from modeltest.command.cases import MODES, Nodes
from modeltest.command.options import FLAGS

Modeltest = Callable[..., subprocess.CompletedProcess[str]]
SPEED = ("pa_fp16", "performance")
QUICK = ("--no_plot", "--chip", "H200", "--output_dir", "out")


class TestHelp:
    def test_no_words(self, modeltest: Modeltest) -> None:
        ended = modeltest(status=2)
        assert ended.stdout == "" and ended.stderr.startswith("usage: bash run.sh model_type test_mode ")
        assert modeltest(status=2, LC_ALL="", LANG="zh_CN.UTF-8").stderr.startswith("用法：bash run.sh model_type ")

    @pytest.mark.parametrize("words", [["--help"], ["pa_fp16", "full_BoolQ", "-h"]])
    def test_names_every_word_and_option(self, modeltest: Modeltest, words: list[str]) -> None:
        english, chinese = modeltest(*words).stdout, modeltest(*words, LC_ALL="zh_CN.UTF-8").stdout
        for text in (english, chinese):
            assert all(name in text for name in (*MODES, *(f"--{flag.name}" for flag in FLAGS), "rank_id_start"))
            assert all(len(line) <= 120 for line in text.splitlines()[1:])
        assert english.isascii() and "用法" in chinese

    @pytest.mark.parametrize(
        ("environ", "is_chinese"),
        [
            ({"LANG": "zh_CN.UTF-8"}, True), ({"LANG": "zh_TW"}, True), ({"LANG": "en_US.UTF-8"}, False), ({}, False),
            ({"LC_ALL": "C", "LANG": "zh_CN"}, False), ({"LC_ALL": "zh_CN", "LANG": "C"}, True),
            ({"LC_MESSAGES": "C", "LANG": "zh_CN"}, False), ({"LC_MESSAGES": "zh_CN", "LANG": "C"}, True),
            ({"LC_ALL": "", "LANG": "zh_CN"}, True),
        ],
    )  # fmt: skip
    def test_language(self, environ: dict[str, str], is_chinese: bool) -> None:
        from modeltest.command.language import chinese

        assert chinese(environ) == is_chinese

    def test_a_locale_without_chinese_letters(self, modeltest: Modeltest) -> None:
        said = modeltest("--help", LC_ALL="zh_CN.ISO-8859-1", PYTHONIOENCODING="latin-1", PYTHONUTF8="0").stdout
        assert said.startswith("\\u7528\\u6cd5")


class TestStart:
    def test_a_mistake_is_one_line(self, modeltest: Modeltest) -> None:
        ended = modeltest("pa_fp16", "full_GPQA", "1", "deepseek", "w", "8", status=2)
        assert ended.stdout == "" and re.fullmatch(
            "atb-models: error: word 2 'full_GPQA' is refused: .*\n", ended.stderr
        )

    @pytest.mark.parametrize("before", [(), ("pa_fp16",)])
    def test_options_before_words(self, modeltest: Modeltest, before: tuple[str, ...]) -> None:
        said = modeltest(*before, "--limit", "3", "full_BoolQ", "1", "deepseek", "w", "8", status=2).stderr
        assert f"word {len(before) + 1} is missing before --limit, for options come after the words; expected " in said

    @pytest.mark.parametrize("brackets", ["[[8,4],[4,2]]", "'[[8,4],[4,2]]'", "[[8, 4], [4, 2]]"])
    def test_a_typed_line(self, root: Path, demo: Path, tmp_path: Path, clean_environ: None, brackets: str) -> None:
        """As users type it, brackets not quoted, in the script's folder; devices must match chip_num."""
        line = f"bash run.sh pa_fp16 performance {brackets} 1 deepseek '{demo}' 4"
        variables = {**os.environ, "PYTHON": sys.executable, "ASCEND_RT_VISIBLE_DEVICES": "0,1"}
        folder = root / "tests" / "modeltest"
        ended = subprocess.run(["bash", "-c", line], cwd=folder, env=variables, capture_output=True, text=True)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert "chip_num 4 contradicts ASCEND_RT_VISIBLE_DEVICES=0,1, which names 2 devices" in ended.stderr

    def test_interpreter(self, root: Path, tmp_path: Path, clean_environ: None) -> None:
        """PYTHON, else that of VENV or .venv, else python3; words come through as they are, the process is replaced."""
        folder = tmp_path / "a b" / "tests" / "modeltest"
        folder.mkdir(parents=True)
        script = folder / "run.sh"
        script.symlink_to(root / "tests" / "modeltest" / "run.sh")
        real = tmp_path / "real" / "tests" / "modeltest"
        real.mkdir(parents=True)
        (real / "run.sh").write_text((root / "tests" / "modeltest" / "run.sh").read_text())
        python = tmp_path / "a python"
        python.write_text('#!/usr/bin/env bash\nprintf "%s|" "$0" "$@"; exit 7\n')
        python.chmod(0o755)
        bare = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "VENV")}

        def run(script: Path, **environ: str) -> list[str]:
            words = ["bash", str(script), "a b", "[[1,2]]", "$x*"]
            ended = subprocess.run(words, env={**bare, **environ}, capture_output=True, text=True, cwd=tmp_path)
            assert ended.returncode == 7, ended.stderr
            return ended.stdout.split("|")[:-1]

        words = ["a b", "[[1,2]]", "$x*"]
        assert run(script, PYTHON=str(python)) == [str(python), str(root / "tests/modeltest/start.py"), *words]
        for venv, environ in ((tmp_path / "my venv", {"VENV": str(tmp_path / "my venv")}), (real / "../../.venv", {})):
            (venv / "bin").mkdir(parents=True)
            (venv / "bin" / "python").symlink_to(python)
            assert run(real / "run.sh", **environ)[1:] == [str(real / "start.py"), *words]

    def test_no_such_interpreter(self, modeltest: Modeltest) -> None:
        ended = modeltest("--help", status=127, PYTHON="/none/python")
        assert ended.stderr == "atb-models: error: /none/python: no such Python\n"

    def test_as_a_command_of_the_package(self, root: Path, tmp_path: Path, clean_environ: None) -> None:
        variables = {**os.environ, "PYTHONPATH": str(root), "LC_ALL": "C"}
        start = str(root / "tests" / "modeltest" / "start.py")
        for words, name in (["atb_models", "modeltest"], "atb-models modeltest"), ([start], "bash run.sh"):
            command = [sys.executable, *(["-m"] if words[0] == "atb_models" else []), *words, "--help"]
            ended = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
            assert ended.returncode == 0 and ended.stdout.startswith(f"usage: {name} "), ended.stderr

    def test_as_a_module_in_its_own_folder(self, root: Path, clean_environ: None) -> None:
        variables = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"}
        command = [sys.executable, "-m", "modeltest", "pa"]
        ended = subprocess.run(
            command, cwd=root / "tests" / "modeltest", env=variables, capture_output=True, text=True, timeout=60
        )
        assert ended.returncode == 2 and "word 1 'pa' is not known there" in ended.stderr


class TestEnd:
    def start(self, root: Path, demo: Path, tmp_path: Path, ranks: int) -> subprocess.Popen[str]:
        """A run of 10,000 tokens that has measured its first: more than any machine computes before the test acts."""
        pairs = json.dumps([[64, 500]] * 20)
        words = [*SPEED, pairs, "1", "deepseek", demo, ranks, *QUICK]
        command = ["bash", root / "tests" / "modeltest" / "run.sh", *words]
        variables = {**os.environ, "PYTHON": sys.executable}
        run = subprocess.Popen(
            list(map(str, command)), cwd=tmp_path, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("performance: "):
                break
        return run

    def test_a_killed_rank(self, root: Path, demo: Path, tmp_path: Path, clean_environ: None) -> None:
        run = self.start(root, demo, tmp_path, 2)
        (rank,) = children(run.pid)
        os.kill(rank, signal.SIGKILL)
        _, errors = run.communicate(timeout=30)
        assert run.returncode == 1 and f"rank 1 (pid {rank}) was killed by signal 9" in errors
        assert not list(tmp_path.rglob("*.csv"))

    def test_ctrl_c(self, root: Path, demo: Path, tmp_path: Path, clean_environ: None) -> None:
        run = self.start(root, demo, tmp_path, 2)
        (rank,) = children(run.pid)
        os.kill(run.pid, signal.SIGINT)
        _, errors = run.communicate(timeout=30)
        assert run.returncode == 130 and errors.endswith("atb-models: error: interrupted\n")
        assert not Path(f"/proc/{rank}").exists() and not list(tmp_path.rglob("*.csv"))


class TestSeveralHosts:
    def table(self, folder: Path, devices: int) -> Path:
        hosts = [{"server_id": f"10.0.0.{host}", "device": [{}] * devices} for host in range(2)]
        path = folder / "rank table.json"
        path.write_text(json.dumps({"server_list": hosts}))
        return path

    def test_command(self, tmp_path: Path, clean_environ: None, monkeypatch: pytest.MonkeyPatch) -> None:
        host = Nodes(self.table(tmp_path, 10), 20, 2, 10, "10.0.0.1")
        wanted = {"--nnodes=2", "--node-rank=1", "--nproc-per-node=10", "--master-addr=10.0.0.1", "--max-restarts=0"}
        assert wanted | {"--master-port=20030"} <= set(nodes.torchrun_flags(host))
        assert int(nodes.rank_variables(host)["OMP_NUM_THREADS"]) >= 1
        monkeypatch.setenv("MASTER_PORT", "20031")
        assert wanted | {"--master-port=20031"} <= set(nodes.torchrun_flags(host))

    @pytest.mark.parametrize(
        ("statuses", "worst"),
        [
            ({1: 1, 3: 2}, 2),
            ({0: -signal.SIGTERM, 1: 2}, 2),
            ({0: -signal.SIGKILL, 1: 1}, 137),
            ({0: -15, 1: -15}, 143),
        ],
    )
    def test_worst_status(self, statuses: dict[int, int], worst: int, capsys: pytest.CaptureFixture[str]) -> None:
        assert nodes.worst(statuses) == worst
        assert ("rank 0 was killed by SIGKILL" in capsys.readouterr().err) == (worst == 137)

    def test_devices_of_one_host(self, modeltest: Modeltest, demo: Path, tmp_path: Path) -> None:
        table = self.table(tmp_path, 2)
        words = (*SPEED, "[[8,4]]", "1", "deepseek", demo, table, 4, 2, 0, "127.0.0.1")
        ended = modeltest(*words, status=2, ASCEND_RT_VISIBLE_DEVICES="0,1,2,3")
        assert "2 ranks of each host (world_size / node_num) contradicts ASCEND_RT_VISIBLE_DEVICES=0,1,2,3, which" in (
            ended.stderr
        )

    def test_two_hosts_on_this_one(self, root: Path, demo: Path, tmp_path: Path, clean_environ: None) -> None:
        """Two commands of one rank each, as on two hosts; only that of rank 0 prints and writes."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = str(listener.getsockname()[1])
        words = [*SPEED, "[[8,3]]", "1", "deepseek", demo, self.table(tmp_path, 1), 2, 2]
        runs = []
        for first in (0, 1):
            command = ["bash", root / "tests/modeltest/run.sh", *words, first, "127.0.0.1", *QUICK, "--device", "cpu"]
            (folder := tmp_path / str(first)).mkdir()
            variables = {**os.environ, "PYTHON": sys.executable, "MASTER_PORT": port}
            pipe = subprocess.PIPE
            runs.append(
                subprocess.Popen(
                    list(map(str, command)), cwd=folder, env=variables, stdout=pipe, stderr=pipe, text=True
                )
            )
        said = [run.communicate(timeout=120) for run in runs]
        assert [run.returncode for run in runs] == [0, 0], said
        assert "| batch |" in said[0][0] and said[1][0] == ""
        (document,) = (tmp_path / "0").rglob("*_tp2.json")
        assert json.loads(document.read_text())["run"]["nodes"]["count"] == 2
        assert not list((tmp_path / "1").iterdir())


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def test_an_installed_package(root: Path, tmp_path: Path) -> None:
    """It has every module, and not run.sh: its results go to the working folder."""
    pytest.importorskip("setuptools")
    built = ["egg_info", "--egg-base", tmp_path, "build_py", "--build-lib", tmp_path / "lib"]
    subprocess.run([sys.executable, "setup.py", "-q", *built], cwd=root, check=True, capture_output=True)
    ours = root / "tests" / "modeltest"
    files = {path.relative_to(tmp_path / "lib" / "modeltest") for path in tmp_path.glob("lib/modeltest/**/*")}
    assert {path.relative_to(ours) for path in ours.rglob("*.py")} <= files and Path("run.sh") not in files
    assert (tmp_path / "lib" / "atb_models" / "plan" / "chips.json").is_file()


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_readme_names_every_mode_and_option(root: Path, name: str) -> None:
    text = (root / "tests" / "modeltest" / name).read_text(encoding="utf-8")
    named = {f"`{mode}`" for mode in MODES} | {f"`--{flag.name} {flag.metavar}".rstrip() + "`" for flag in FLAGS}
    assert {one for one in named if one not in text} == set()
    assert set(re.findall(r"^\| .*`--(\w+)", text, re.MULTILINE)) <= {flag.name for flag in FLAGS}
