"""The table of environment variables."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from atb_models import env
from atb_models.env_report import print_report
from atb_models.errors import ConfigError

# Variables of MindIE that are sensible on any device ("Y" in its description, sections 3.1 to 3.3).
HONOURED = """RESERVED_MEMORY_GB NPU_MEMORY_FRACTION ASCEND_RT_VISIBLE_DEVICES BIND_CPU CPU_BINDING_NUM
REMOVE_GENERATION_CONFIG_DICT WORLD_SIZE RANK LOCAL_RANK MASTER_IP MASTER_PORT ATB_LLM_BENCHMARK_ENABLE
ATB_LLM_BENCHMARK_FILEPATH ATB_LLM_LOGITS_SAVE_ENABLE ATB_LLM_LOGITS_SAVE_FOLDER ATB_LLM_TOKEN_IDS_SAVE_ENABLE
ATB_LLM_TOKEN_IDS_SAVE_FOLDER MINDIE_ENABLE_EXPERT_HOTPOT_GATHER MINDIE_EXPERT_HOTPOT_DUMP_PATH MINDIE_LOG_LEVEL
MINDIE_LOG_TO_FILE MINDIE_LOG_TO_STDOUT MINDIE_LOG_PATH MINDIE_LOG_VERBOSE MINDIE_LOG_ROTATE
MINDIE_CHECK_INPUTFILES_PERMISSION OMP_NUM_THREADS""".split()

# Such variables that belong to modeltest and the profiler, which this version does not have: a set one is reported.
WAITING = """MODELTEST_DATASET_SPECIFIED MODELTEST_PD_SPLIT_ENABLE MODELTEST_LOG_LEVEL MODELTEST_LOG_TO_FILE
ATB_PROFILING_ENABLE PROFILING_LEVEL PROFILING_FILEPATH BAD_CASE_LOGITS_DUMP LOGITS_DUMP_TOKEN_MAX_LENGTH
BAD_CASE_LIST""".split()


@pytest.mark.parametrize("name", HONOURED)
def test_variable_is_read(name, root):
    assert env.TABLE[name].use == env.READ
    sources = [path for path in (root / "atb_models").rglob("*.py") if path.name != "env.py"]
    assert any(f'"{name}"' in path.read_text(encoding="utf-8") for path in sources), f"nothing reads {name}"


@pytest.mark.parametrize("name", WAITING)
def test_variable_that_is_not_read_yet_is_reported(name):
    (line,) = env.unread_notice("cpu", {name: "1"})
    assert line.startswith("set, but nothing here reads them: " + name)


def test_gloo_interface_is_passed_on():
    assert env.TABLE["GLOO_SOCKET_IFNAME"].use == env.PASSED


def test_no_variable_is_listed_twice():
    assert len(env.TABLE) == len(env._ROWS)


def test_defaults_are_allowed():
    for variable in env.TABLE.values():
        env.get(variable.name, {})


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
        ("BIND_CPU", "yes"),
        ("CPU_BINDING_NUM", "0"),
        ("MASTER_PORT", "65536"),
        ("MASTER_PORT", "port"),
        ("OMP_NUM_THREADS", "0"),
        ("ATB_LLM_BENCHMARK_ENABLE", "2"),
        ("MINDIE_LOG_LEVEL", "LOUD"),
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


def test_notices_name_what_is_not_read_and_what_is_for_the_npu():
    environ = {
        "ATB_FOO": "1",
        "HCCL_BAR": "1",
        "PROFILING_LEVEL": "1",
        "HCCL_BUFFSIZE": "200",
        "RESERVED_MEMORY_GB": "1",
    }
    unread, npu_only = env.unread_notice("cpu", environ)
    assert "ATB_FOO, HCCL_BAR, PROFILING_LEVEL " in unread
    assert npu_only.endswith(": HCCL_BUFFSIZE") and "cpu" in npu_only
    assert env.unread_notice("npu", {"HCCL_BUFFSIZE": "200"}) == []


def test_notices_leave_out_what_a_script_exported():
    assert env.unread_notice("cpu", {"TASK_QUEUE_ENABLE": "1", "ATB_LAUNCHER_DEFAULTS": " TASK_QUEUE_ENABLE"}) == []


def test_report_shows_values_and_problems():
    out = io.StringIO()
    problems = print_report(out, {"MASTER_PORT": "20031", "BIND_CPU": "x", "MINDIE_FOO": "1"})
    rows = {line.split()[0]: line.split() for line in out.getvalue().splitlines() if line.strip()}
    assert set(env.TABLE) <= set(rows)
    assert rows["MASTER_PORT"][1] == "20031" and rows["RESERVED_MEMORY_GB"][1:3] == ["-", "3"]
    assert "MINDIE_FOO" in out.getvalue().splitlines()[-1]
    assert problems == ["BIND_CPU='x' must be 0 or 1"]
