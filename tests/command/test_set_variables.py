"""What is said of variables that are set: misspelt, passed on to libraries, without effect."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from atb_models import env
from atb_models.command.set_variables import misspelt, passed_on, unread_notice
from atb_models.env_report import print_report
from modeltest import environment
from tests.server.running import running

VENDORS = {"HCCL_ALGO": "level0:ring", "HCCL_INTRA_ROCE_ENABLE": "1", "LCCL_FOO": "1", "ATB_LOG_LEVEL": "3"}
TYPOS = {
    "ATB_LLM_BENCHMRK_ENABLE": "ATB_LLM_BENCHMARK_ENABLE",
    "ATB_PROFILING_ENABEL": "ATB_PROFILING_ENABLE",
    "ATB_API_KEYS": "ATB_API_KEY",
    "ATB_CPU_ISAS": "ATB_CPU_ISA",
    "ASCEND_RT_VISIBLE_DEVICE": "ASCEND_RT_VISIBLE_DEVICES",
    "MASTER_PROT": "MASTER_PORT",
    "RESERVED_MEMORY_GBS": "RESERVED_MEMORY_GB",
    "MINDIE_LOGLEVEL": "MINDIE_LOG_LEVEL",
    "ATB_LLM_HCCL_ENABLED": "ATB_LLM_HCCL_ENABLE",
    # of the scripts
    "input_texts": "input_text",
    "max_output_lenght": "max_output_length",
    "system_promt": "system_prompt",
    "extra_params": "extra_param",
    # of libraries, without a prefix of theirs
    "INF_NAN_MODE_ENABLED": "INF_NAN_MODE_ENABLE",
    "TASK_QUEUE_ENABLED": "TASK_QUEUE_ENABLE",
    "PYTORCH_NPU_ALLOC_CONFIG": "PYTORCH_NPU_ALLOC_CONF",
    "MASTER_ADDRESS": "MASTER_ADDR",
    "ASCEND_LAUNCH_BLOCK": "ASCEND_LAUNCH_BLOCKING",
    "CUDA_VISIBLE_DEVICE": "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREAD": "OMP_NUM_THREADS",
    "HF_ENDPONT": "HF_ENDPOINT",
    "CPU_BINDING_NUMBER": "CPU_BINDING_NUM",
}
VENDORS_TYPOS = {
    "HCCL_CONNECT_TIMEOT": "HCCL_CONNECT_TIMEOUT",
    "HCCL_BUFFSZE": "HCCL_BUFFSIZE",
    "HCCL_WHITELIST_DISABLED": "HCCL_WHITELIST_DISABLE",
    "LCCL_DETERMINSTIC": "LCCL_DETERMINISTIC",
    "ATB_OPERATION_EXECUTE_ASYN": "ATB_OPERATION_EXECUTE_ASYNC",
}


def test_each_kind_has_its_line() -> None:
    environ = {"ATB_LLM_FOO": "1", "HCCL_BAR": "1", "ATB_BAR": "1", "PROFILING_LEVEL": "1", "HCCL_BUFFSIZE": "200"}
    unread, passed = unread_notice("cpu", environ)
    assert unread.startswith("set, but nothing here reads them: ATB_LLM_FOO, PROFILING_LEVEL (`atb-models env`")
    libraries = "passed on to the Ascend libraries, "
    assert passed == f"{libraries}so without effect on cpu: ATB_BAR, HCCL_BAR, HCCL_BUFFSIZE"
    assert unread_notice("npu", environ) == [unread, f"{libraries}unknown to this program: ATB_BAR, HCCL_BAR"]
    assert unread_notice("npu", {"HCCL_BUFFSIZE": "200"}) == []


@pytest.mark.parametrize("device", ["cpu", "cuda", "npu"])
def test_variables_of_the_ascend_libraries_are_never_called_unread(device: str) -> None:
    (line,) = unread_notice(device, VENDORS)
    assert line.startswith("passed on to the Ascend libraries") and all(name in line for name in VENDORS)


@pytest.mark.parametrize(("name", "meant"), TYPOS.items())
@pytest.mark.parametrize("device", ["cpu", "npu"])
def test_a_misspelt_name_of_ours_is_pointed_out(device: str, name: str, meant: str) -> None:
    (line,) = unread_notice(device, {name: "1"})
    assert line.startswith(f"set, but nothing here reads them: {name} (did you mean {meant}?) ")


@pytest.mark.parametrize(("name", "meant"), VENDORS_TYPOS.items())
@pytest.mark.parametrize(("device", "why"), [("cpu", "so without effect on cpu"), ("npu", "unknown to this program")])
def test_a_misspelt_name_of_the_libraries_is_passed_on_and_pointed_out(
    device: str, why: str, name: str, meant: str
) -> None:
    """They know more names than the table: it may be one of these."""
    (line,) = unread_notice(device, {name: "1"})
    assert line == f"passed on to the Ascend libraries, {why}: {name} (did you mean {meant}?)"


def test_other_programs_variables_are_no_misspelt_ones() -> None:
    """What torchrun, schedulers, containers, other libraries of threads and shells set."""
    names = """GROUP_RANK ROLE_RANK ROLE_WORLD_SIZE GROUP_WORLD_SIZE GLOBAL_RANK ROLE_NAME TORCHELASTIC_RESTART_COUNT
    TORCHELASTIC_MAX_RESTARTS SLURM_LOCALID OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_LOCAL_RANK PMI_RANK MKL_NUM_THREADS
    OPENBLAS_NUM_THREADS BLIS_NUM_THREADS OMP_THREAD_LIMIT OMP_PROC_BIND NVIDIA_VISIBLE_DEVICES ASCEND_VISIBLE_DEVICES
    HIP_VISIBLE_DEVICES HTTP_PROXY https_proxy NO_PROXY HF_HOME PYTHONPATH VIRTUAL_ENV CC CXXFLAGS TERM LANG PATH
    ASCEND_HOME_PATH ASCEND_TOOLKIT_HOME ASCEND_OPP_PATH ASCEND_AICPU_PATH MASTER_HOST PET_MASTER_PORT
    PYTHON3 PYTHONHOME PYTHONUNBUFFERED LOG_LEVEL LOGNAME PYTORCH_ALLOC_CONF PYTORCH_HIP_ALLOC_CONF NCCL_BUFFSIZE
    NCCL_SOCKET_IFNAME TP_SOCKET_IFNAME CUDA_LAUNCH_BLOCKING ROCR_VISIBLE_DEVICES GPU_VISIBLE_DEVICES RANKS TORCH_HOME
    NUMEXPR_NUM_THREADS HF_TOKEN HF_HOME COMBINED_ENABLE ASCEND_GLOBAL_LOG_LEVEL ASCEND_WORK_PATH""".split()
    environ = dict.fromkeys(names, "1")
    assert misspelt(environ) == {} and passed_on(environ) == {}


def test_the_libraries_own_names_are_passed_on_without_a_hint() -> None:
    names = """HCCL_ALGO HCCL_INTRA_PCIE_ENABLE HCCL_INTRA_ROCE_ENABLE HCCL_RDMA_TC HCCL_RDMA_SL HCCL_RDMA_TIMEOUT
    HCCL_RDMA_RETRY_CNT HCCL_SOCKET_FAMILY HCCL_WHITELIST_FILE HCCL_DIAGNOSE_ENABLE HCCL_ENTRY_LOG_ENABLE
    HCCL_OP_RETRY_ENABLE HCCL_DEBUG_CONFIG LCAL_COMM_ID ATB_LOG_LEVEL ATB_LOG_TO_FILE ATB_LOG_TO_STDOUT""".split()
    environ = dict.fromkeys(names, "1")
    assert misspelt(environ) == {} and passed_on(environ) == dict.fromkeys(names)


@pytest.mark.parametrize("name", env.TABLE)
def test_a_name_of_the_table_is_neither_misspelt_nor_unknown(name: str) -> None:
    assert misspelt({name: "1"}) == {} and passed_on({name: "1"}) == {}


def test_memory_settings_on_a_cpu() -> None:
    environ = {"RESERVED_MEMORY_GB": "1", "NPU_MEMORY_FRACTION": "0.5", "HCCL_BUFFSIZE": "200"}
    passed, memory = unread_notice("cpu", environ)
    assert memory.startswith("set, but without effect on cpu")
    assert memory.endswith(": NPU_MEMORY_FRACTION, RESERVED_MEMORY_GB") and "MEMORY" not in passed
    (passed,) = unread_notice("cuda", environ)
    assert "MEMORY" not in passed
    assert unread_notice("npu", environ) == []


def test_what_a_script_exported_is_left_out() -> None:
    assert unread_notice("cpu", {"TASK_QUEUE_ENABLE": "1", "ATB_LAUNCHER_DEFAULTS": " TASK_QUEUE_ENABLE"}) == []


def test_an_empty_value_counts_as_unset() -> None:
    assert unread_notice("cpu", {"HCCL_ALGO": "", "MINDIE_FOO": "", "HCCL_BUFFSIZE": ""}) == []


def test_report() -> None:
    out = io.StringIO()
    users = {**VENDORS, "ATB_API_KEYS": "1", "HCCL_PROXY": "http://me:secret@host", "HCCL_BUFFSZE": "200"}
    assert print_report(out, users) == []
    passed, _, unread = out.getvalue().splitlines()[-3:]
    assert passed.startswith("passed on to the Ascend libraries, unknown to this program: ATB_LOG_LEVEL=3, HCCL_ALGO=")
    assert "HCCL_BUFFSZE=200 (did you mean HCCL_BUFFSIZE?)" in passed
    assert "HCCL_PROXY=http://***@host" in passed and "secret" not in out.getvalue()
    assert unread == "set, but nothing here reads them: ATB_API_KEYS (did you mean ATB_API_KEY?)"


KEYS = ("ATB_API_KEY", "ATB_API_KEY_OLD", "ATB_API_KEYS", "ATB_API_KYE", "ATB_TOKEN", "HCCL_SECRET", "LCCL_PASSWD",
    "MINDIE_AUTH")  # fmt: skip
URLS = ("http://me:s3cret@host", "https://me:s3c@ret@host/path", "http://me:a/s3cret@host:80 x")


@pytest.mark.parametrize("name", KEYS)
def test_no_report_shows_a_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    print_report(out, {name: "sk-s3cret"})
    assert name in out.getvalue() and "s3c" not in out.getvalue()
    monkeypatch.setenv(name, "sk-s3cret")
    assert environment.facts(None)["variables"][name] == "***"


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "HF_ENDPOINT", "HCCL_PROXY"])
def test_no_report_shows_the_password_of_a_url(name: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    print_report(out, {name: url})
    monkeypatch.setenv(name, url)
    for text in (out.getvalue(), environment.facts(None)["variables"][name]):
        assert "//***@host" in text and not re.search("s3c|cret", text)


@pytest.mark.parametrize("name", sorted(env.TABLE.keys() - {env.API_KEY}))
def test_other_values_of_the_table_are_shown(name: str) -> None:
    """Also those with TOKEN in their name, which hold no secret."""
    assert env.shown_value(name, "1") == "1"


def test_the_command_that_reports_shows_no_key(root: Path, clean_environ: None) -> None:
    keys = dict.fromkeys(KEYS, "sk-s3cret")
    ended = subprocess.run(
        [sys.executable, "-m", "atb_models", "env"], env={**os.environ, "PYTHONPATH": str(root), **keys},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert all(name in ended.stdout for name in KEYS) and "s3c" not in ended.stdout + ended.stderr


SET = {**VENDORS, "HCCL_IF_BASE_PORT": "50000", "ATB_LLM_BENCHMRK_ENABLE": "1", "max_output_lenght": "3"}


def check(log: str) -> None:
    (unread,) = [line for line in log.splitlines() if "nothing here reads" in line]
    assert "reads them: ATB_LLM_BENCHMRK_ENABLE (did you mean ATB_LLM_BENCHMARK_ENABLE?), max_output_" in unread
    (passed,) = [line for line in log.splitlines() if "passed on to the Ascend libraries" in line]
    assert passed.endswith(", ".join(sorted([*VENDORS, "HCCL_IF_BASE_PORT"]))) and "HCCL" not in unread


@pytest.mark.parametrize(
    "command",
    [
        ["run", "--device", "cpu", "--max_output_length", "2", "--input_texts", "Who"],
        ["launch", "--device", "cpu", "--tp", "2", "--max_output_length", "2", "--input_texts", "Who"],
        ["chat", "--device", "cpu", "--max_tokens", "2"],
    ],
    ids=lambda command: command[0],
)
def test_commands_say_it_once(root: Path, clean_environ: None, command: list[str]) -> None:
    environ = {**os.environ, "PYTHONPATH": str(root), **SET}
    ended = subprocess.run(
        [sys.executable, "-m", "atb_models", *command], env=environ, input="Who\n", capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    check(ended.stderr)


def test_serve_says_it_once(clean_environ: None) -> None:
    with running("--device", "cpu", "--max_batch_size", "1", env=SET) as server:
        check("".join(server.lines))
