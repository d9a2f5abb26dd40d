"""The table of environment variables."""

from __future__ import annotations

import ast
import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from atb_models import env
from atb_models.command.set_variables import unread_notice
from atb_models.env_report import print_report
from atb_models.errors import ConfigError
from atb_models.machine import affinity

# Variables of MindIE that are sensible on any device ("Y" in its description, sections 3.1 to 3.3).
HONOURED = """RESERVED_MEMORY_GB NPU_MEMORY_FRACTION ASCEND_RT_VISIBLE_DEVICES BIND_CPU CPU_BINDING_NUM
REMOVE_GENERATION_CONFIG_DICT WORLD_SIZE RANK LOCAL_RANK MASTER_IP MASTER_PORT ATB_LLM_BENCHMARK_ENABLE
ATB_LLM_BENCHMARK_FILEPATH ATB_LLM_LOGITS_SAVE_ENABLE ATB_LLM_LOGITS_SAVE_FOLDER ATB_LLM_TOKEN_IDS_SAVE_ENABLE
ATB_LLM_TOKEN_IDS_SAVE_FOLDER MINDIE_ENABLE_EXPERT_HOTPOT_GATHER MINDIE_EXPERT_HOTPOT_DUMP_PATH MINDIE_LOG_LEVEL
MINDIE_LOG_TO_FILE MINDIE_LOG_TO_STDOUT MINDIE_LOG_PATH MINDIE_LOG_VERBOSE MINDIE_LOG_ROTATE
MINDIE_CHECK_INPUTFILES_PERMISSION OMP_NUM_THREADS ATB_PROFILING_ENABLE PROFILING_FILEPATH""".split()

# Such variables that belong to modeltest, which this version does not have, or to the vendor's profiler: reported.
WAITING = """MODELTEST_DATASET_SPECIFIED MODELTEST_PD_SPLIT_ENABLE MODELTEST_LOG_LEVEL MODELTEST_LOG_TO_FILE
PROFILING_LEVEL BAD_CASE_LOGITS_DUMP LOGITS_DUMP_TOKEN_MAX_LENGTH BAD_CASE_LIST""".split()


@pytest.mark.parametrize("name", HONOURED)
def test_variable_is_read(name, root):
    assert env.TABLE[name].use in (env.READ, env.ACCELERATOR)
    sources = [path for path in (root / "atb_models").rglob("*.py") if path.name != "env.py"]
    assert any(f'"{name}"' in path.read_text(encoding="utf-8") for path in sources), f"nothing reads {name}"


@pytest.mark.parametrize("name", WAITING)
def test_variable_that_is_not_read_yet_is_reported(name):
    (line,) = unread_notice("cpu", {name: "1"})
    assert line.startswith("set, but nothing here reads them: " + name)


# A part of a running environment that is not ours: Python's own, which ranks get with our folder in front.
OTHERS = {"PYTHONPATH"}
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def names_in(path: Path, constants: dict[str, str]) -> set[str]:
    """Names of variables that a module looks up or sets: environ[x], environ.get(x), x in environ and the like."""

    def is_environ(node: ast.AST) -> bool:
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
        return name in ("environ", "environment")

    found: list[ast.AST] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Subscript) and is_environ(node.value):
            found.append(node.slice)
        elif isinstance(node, ast.Compare) and is_environ(node.comparators[0]):
            found.append(node.left)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            owner, asks = node.func.value, node.func.attr in ("get", "is_set", "set_default")
            if is_environ(owner) or (asks and getattr(owner, "id", "") == "env"):
                found.append(node.args[0])
    texts = [constants.get(node.id, "") if isinstance(node, ast.Name) else getattr(node, "value", "") for node in found]
    return {text for text in texts if isinstance(text, str) and NAME.fullmatch(text)}


def test_every_variable_of_the_code_is_in_the_table(root):
    paths = sorted((root / "atb_models").rglob("*.py"))
    constant = re.compile(r'^(\w+) = "([A-Z0-9_]+)"$', re.MULTILINE)
    constants = {name: value for path in paths for name, value in constant.findall(path.read_text(encoding="utf-8"))}
    named = set().union(*(names_in(path, constants) for path in paths))
    assert {"RANK", "LOGLEVEL", "TORCHELASTIC_RUN_ID", "PYTHONSAFEPATH", "OMP_NUM_THREADS"} <= named
    assert named - OTHERS - set(env.TABLE) == set()


def test_recommended_variables_are_in_the_table(root):
    advised = re.findall(r"\(([A-Z_]+), ([A-Z_]+)\)", (root / "atb_models/fetch.py").read_text(encoding="utf-8"))
    assert advised == [("HF_ENDPOINT", "HTTPS_PROXY")]
    assert set(advised[0]) <= set(env.TABLE)


def test_every_variable_of_the_scripts_is_in_the_table(root):
    scripts = [*(root / "examples").rglob("*.sh"), root / "tests/run_tests.sh"]
    assert len(scripts) >= 5
    for path in scripts:
        text = path.read_text(encoding="utf-8")
        own = set(re.findall(r"local ([^\n]*)", text))
        locals_ = {word.split("=")[0] for line in own for word in line.split()}
        named = set(re.findall(r"\$\{([A-Za-z_]\w*):?-", text)) | set(re.findall(r"\bdefault ([A-Z_]+) ", text))
        assert named - locals_ - set(env.TABLE) == set(), path


def test_gloo_interface_is_passed_on():
    assert env.TABLE["GLOO_SOCKET_IFNAME"].use == env.PASSED


def test_no_variable_is_listed_twice():
    assert len(env.TABLE) == len(env._ROWS)


def test_a_variable_is_set_where_it_has_a_value_right_or_wrong(monkeypatch):
    seen = []
    for value in ("4", "four", ""):
        monkeypatch.setenv("WORLD_SIZE", value)
        seen.append(env.is_set("WORLD_SIZE"))
    monkeypatch.delenv("WORLD_SIZE")
    assert [*seen, env.is_set("WORLD_SIZE")] == [True, True, False, False]


@pytest.mark.parametrize(("users", "expected"), [(None, "0"), ("", "0"), ("1", "1")])
def test_a_default_yields_to_every_value_but_the_empty_one(monkeypatch, users, expected):
    monkeypatch.delenv("TASK_QUEUE_ENABLE", raising=False)
    if users is not None:
        monkeypatch.setenv("TASK_QUEUE_ENABLE", users)
    env.set_default("TASK_QUEUE_ENABLE", "0")
    assert env.get("TASK_QUEUE_ENABLE") == expected


def test_no_default_is_set_in_another_way(root):
    """setdefault keeps an empty value, which counts as unset."""
    sources = [*(root / "atb_models").rglob("*.py"), *(root / "tests/modeltest").rglob("*.py")]
    sources += [*(root / "tools").rglob("*.py"), *(root / "benchmarks").rglob("*.py")]
    found = [path for path in sources if re.search(r"environ(ment)?\.setdefault\(", path.read_text(encoding="utf-8"))]
    assert len(sources) > 200 and found == []


def test_empty_variables_change_no_run(root, clean_environ):
    names = """TORCH_ELASTIC_SHUTDOWN_TIMEOUT LOGLEVEL OMP_NUM_THREADS MASTER_PORT MASTER_ADDR ATB_CPU_ISA BIND_CPU
    TORCH_DEVICE_BACKEND_AUTOLOAD ASCEND_RT_VISIBLE_DEVICES RESERVED_MEMORY_GB MINDIE_LOG_LEVEL""".split()
    words = ["launch", "--device", "cpu", "--max_output_length", "2", "--input_texts", "Who", "--tp", "2"]
    environ = {**os.environ, "PYTHONPATH": str(root), **dict.fromkeys(names, "")}
    ended = subprocess.run(
        [sys.executable, "-m", "atb_models", *words], env=environ, capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    assert "Answer[0]" in ended.stdout and "set, but" not in ended.stderr


def test_a_level_that_torchrun_does_not_know_is_refused_by_name(root, clean_environ):
    words = ["launch", "--device", "cpu", "--max_output_length", "2", "--input_texts", "Who", "--tp", "2"]
    ended = subprocess.run(
        [sys.executable, "-m", "atb_models", *words], env={**os.environ, "PYTHONPATH": str(root), "LOGLEVEL": "debug"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert ended.returncode == 2
    assert f"error: LOGLEVEL='debug' must be {env.PYTHON_LEVEL.allowed}\n" in ended.stderr


def test_every_number_that_linux_gives_a_process_is_allowed():
    assert env.get("ATB_LAUNCHER_PID", {"ATB_LAUNCHER_PID": str((1 << 22) - 1)}) == (1 << 22) - 1


def test_defaults_are_allowed():
    for variable in env.TABLE.values():
        assert (env.get(variable.name, {}) is None) == (variable.default is None), variable.name


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("RESERVED_MEMORY_GB", "", 3),
        ("RESERVED_MEMORY_GB", "0", 0),
        ("NPU_MEMORY_FRACTION", "", 1.0),
        ("NPU_MEMORY_FRACTION", "0.8", 0.8),
        ("ASCEND_RT_VISIBLE_DEVICES", "0,2, 5", (0, 2, 5)),
        ("ASCEND_RT_VISIBLE_DEVICES", "", None),
        ("BIND_CPU", "", None),
        ("BIND_CPU", "0", False),
        ("CPU_BINDING_NUM", "4", 4),
        ("MINDIE_LOG_LEVEL", "warning", "WARN"),
        ("MINDIE_LOG_LEVEL", "ms:DEBUG; llm:ERROR; INFO", "ERROR"),
        ("MINDIE_LOG_TO_FILE", "llm:true;false", True),
        ("MINDIE_LOG_TO_FILE", "ms:true;false", False),
        ("MINDIE_LOG_ROTATE", "-r 3", (20, 3)),
        ("MINDIE_LOG_ROTATE", "-fs 5 -r 64", (5, 64)),
        ("ATB_LLM_LOGITS_SAVE_FOLDER", "", Path(".")),
        ("MASTER_PORT", "20030", 20030),
        ("MINDIE_LOG_PATH", "/a", Path("/a")),
        ("MINDIE_LOG_PATH", "/a/12:30;x", Path("/a/12:30;x")),
        ("MINDIE_LOG_PATH", "llm:/a;server:/b", Path("/a")),
        ("MINDIE_LOG_PATH", "server:/b; /c", Path("/c")),
        ("MINDIE_LOG_PATH", "llm:~/a:b", Path.home() / "a:b"),
        ("MINDIE_LOG_PATH", "server:/b", Path.home() / "mindie/log"),
        ("ATB_LLM_LOGITS_SAVE_FOLDER", "~/logits", Path.home() / "logits"),
        ("ATB_LLM_BENCHMARK_FILEPATH", "~/b.csv", Path.home() / "b.csv"),
    ],
)
def test_value(name, text, value):
    assert env.get(name, {name: text}) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("RESERVED_MEMORY_GB", "64"),
        ("RESERVED_MEMORY_GB", "-1"),
        ("NPU_MEMORY_FRACTION", "0"),
        ("NPU_MEMORY_FRACTION", "1.1"),
        ("NPU_MEMORY_FRACTION", "nan"),
        ("ASCEND_RT_VISIBLE_DEVICES", "0,0"),
        ("ASCEND_RT_VISIBLE_DEVICES", "0,a"),
        ("ASCEND_RT_VISIBLE_DEVICES", "0,-1"),
        ("ASCEND_RT_VISIBLE_DEVICES", "0,,1"),
        ("ASCEND_RT_VISIBLE_DEVICES", "+1"),
        ("ASCEND_RT_VISIBLE_DEVICES", "1_0"),
        ("ASCEND_RT_VISIBLE_DEVICES", "٣"),
        ("ATB_LLM_LOGITS_SAVE_FOLDER", "~no-such-user/x"),
        ("BIND_CPU", "yes"),
        ("CPU_BINDING_NUM", "0"),
        ("MASTER_PORT", "65536"),
        ("MASTER_PORT", "port"),
        ("OMP_NUM_THREADS", "0"),
        ("ATB_LLM_BENCHMARK_ENABLE", "2"),
        ("MINDIE_LOG_LEVEL", "LOUD"),
        ("LOGLEVEL", "debug"),
        ("MINDIE_LOG_TO_FILE", "llm:maybe"),
        ("MINDIE_LOG_ROTATE", "-fs 501"),
        ("MINDIE_LOG_ROTATE", "-fs"),
        ("MINDIE_LOG_ROTATE", "-x 3"),
    ],
)
def test_bad_value_names_variable_value_and_what_is_allowed(name, text):
    with pytest.raises(ConfigError) as caught:
        env.get(name, {name: text})
    assert str(caught.value) == f"{name}={text!r} must be {env.TABLE[name].kind.allowed}"


def test_value_is_read_when_used(monkeypatch):
    monkeypatch.setenv("RESERVED_MEMORY_GB", "5")
    assert env.get("RESERVED_MEMORY_GB") == 5
    monkeypatch.setenv("RESERVED_MEMORY_GB", "6")
    assert env.get("RESERVED_MEMORY_GB") == 6


@pytest.mark.parametrize("name", ["RESERVED_MEMORY_GB", "NPU_MEMORY_FRACTION"])
def test_table_says_where_the_memory_settings_hold(name):
    assert env.TABLE[name].use == "npu and cuda" and "CPU" in env.TABLE[name].meaning


class TestBinding:
    """Which processes bind themselves to cores."""

    @pytest.fixture
    def bound(self, clean_environ, monkeypatch):
        calls: list[list[int]] = []
        monkeypatch.setattr(affinity.os, "sched_getaffinity", lambda _: set(range(8)))
        monkeypatch.setattr(affinity.os, "sched_setaffinity", lambda _, cores: calls.append(cores))
        monkeypatch.setenv("CPU_BINDING_NUM", "2")
        return calls

    def test_a_plain_process_does_not(self, bound, caplog):
        with caplog.at_level(logging.WARNING, "atb_models"):
            affinity.bind_cores("cpu")
        assert bound == []
        assert "CPU_BINDING_NUM has no effect without the launcher or torchrun" in caplog.text

    def test_a_rank_of_torchrun_does(self, bound, monkeypatch):
        for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
            monkeypatch.setenv(name, value)
        affinity.bind_cores("cpu")
        assert bound == [[2, 3]]

    def test_the_table_says_so(self):
        for name in ("BIND_CPU", "CPU_BINDING_NUM"):
            assert "torchrun, no others" in env.TABLE[name].meaning


def test_report_hides_a_proxys_password():
    out = io.StringIO()
    print_report(out, {"HTTPS_PROXY": "http://me:secret@proxy:3128"})
    assert "http://***@proxy:3128" in out.getvalue() and "secret" not in out.getvalue()


def test_report_shows_values_and_problems():
    out = io.StringIO()
    problems = print_report(out, {"MASTER_PORT": "20031", "BIND_CPU": "x", "MINDIE_FOO": "1"})
    rows = {line.split()[0]: line.split() for line in out.getvalue().splitlines() if line.strip()}
    assert set(env.TABLE) <= set(rows)
    assert rows["MASTER_PORT"][1] == "20031" and rows["RESERVED_MEMORY_GB"][1:3] == ["-", "3"]
    assert "MINDIE_FOO" in out.getvalue().splitlines()[-1]
    assert problems == ["BIND_CPU='x' must be 0 or 1"]
