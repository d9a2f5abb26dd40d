"""Device set-up from outside: commands on machines with and without CANN and devices."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from atb_models.engine.rank import run_model
from atb_models.machine import determinism
from tests.npu.conftest import Run

SHORT = ("--max_output_length", "3")


def ask(*words: str, root: Path, run: Run | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    command = [str(root / "run_pa.py"), *SHORT, *words]
    if run is not None:
        return run(*command, **options)
    environ = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    return subprocess.run([sys.executable, *command], env=environ, capture_output=True, text=True, timeout=300)


@pytest.fixture
def without_cann() -> None:
    if importlib.util.find_spec("torch_npu") is None:
        pytest.skip("torch_npu is not installed")


def test_torch_npu_without_cann(root: Path, without_cann: None) -> None:
    refused = ask("--device", "npu", root=root)
    assert refused.returncode == 2
    assert "error: device npu: CANN is not there or not set up (lib" in refused.stderr
    assert refused.stderr.count("\n") == 1
    computed = ask("--device", "cpu", root=root)
    assert computed.returncode == 0 and "no NPU is used" not in computed.stdout + computed.stderr
    chosen = ask(root=root)
    assert chosen.returncode == 0
    assert "torch_npu is installed, but no NPU is used: device npu: CANN" in chosen.stdout + chosen.stderr


def test_python_without_cann(without_cann: None) -> None:
    """Importing torch itself fails there, unless torch_npu's autoload is off."""
    program = (
        "from atb_models import LLM\nwith LLM(device='cpu') as llm: print(llm.generate([[1, 2]])[0].finish_reason)"
    )
    environ = {name: value for name, value in os.environ.items() if name != "TORCH_DEVICE_BACKEND_AUTOLOAD"}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("devices", "variables", "words", "message"),
    [
        (0, {}, (), "device npu: the driver shows no device; see `npu-smi info`"),
        (2, {"ASCEND_RT_VISIBLE_DEVICES": "0,5"}, (), "DEVICES=0,5 names 2 devices, the driver shows 1"),
        (2, {}, ("--tp", "4"), "tp 4 needs 4 devices, 2 NPU devices are visible; lower it"),
        (1, {}, ("--block_size", "16"), "block_size 16: attention on npu takes blocks of 128"),
        (
            1,
            {"HCCL_DETERMINISTIC": "false"},
            ("--deterministic",),
            "HCCL_DETERMINISTIC=true, the environment has false",
        ),
        (1, {}, ("--dtype", "fp32"), "dtype fp32: attention on npu takes fp16 and bf16"),
    ],
)
def test_what_cannot_run_is_refused(
    soft_npu: Run, root: Path, devices: int, variables: dict[str, str], words: tuple[str, ...], message: str
) -> None:
    done = ask("--device", "npu", *words, root=root, run=soft_npu, devices=devices, **variables)
    assert done.returncode != 0 and message in done.stderr, done.stderr


def test_an_npu_is_the_first_choice(soft_npu: Run, root: Path) -> None:
    program = "from atb_models.machine.device import choose_device; print(choose_device(None))"
    assert soft_npu("-c", program).stdout.split()[-1] == "npu"


def test_defaults_give_way_to_the_users_values(soft_npu: Run) -> None:
    program = """
import os
from atb_models.machine.device import rank_device
device = rank_device("npu", 1)
import torch
print(device, torch.npu.current_device(), torch.npu.matmul.allow_hf32)
print(*(os.environ[name] for name in ("HCCL_HOST_SOCKET_PORT_RANGE", "HCCL_NPU_SOCKET_PORT_RANGE",
                                      "PYTORCH_NPU_ALLOC_CONF", "INF_NAN_MODE_FORCE_DISABLE")))
"""
    done = soft_npu("-c", program, devices=2, HCCL_NPU_SOCKET_PORT_RANGE="50000-50100", INF_NAN_MODE_ENABLE="0")
    assert done.stdout.splitlines()[-2:] == ["npu:1 1 False", "auto 50000-50100 expandable_segments:True 1"]


DETERMINISTIC = """
from atb_models import LLM, SamplingParams
from atb_models.ranks import spawn
from tests.npu import test_setup
from tests.npu.soft import counts

spawn.spawn.__defaults__ = ("tests.npu.test_setup:run_and_tell",)
sampled = SamplingParams(max_tokens=3, temperature=1, seed=5)
with LLM(device="npu", tp=2, deterministic=True) as llm:
    test_setup.tell(0)
    assert llm.generate([[1, 2, 3]], sampled)[0].finish_reason == "length"
    print("sums on the device:", counts.OPERATORS["aten::cumsum"])
"""


def tell(rank: int) -> None:
    import torch

    memory: Any = torch.utils.deterministic
    found = [torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory]
    found += [os.environ.get(name) for name in determinism.NEEDED["npu"]]
    print(f"rank {rank} {found}\n", end="", flush=True)


def run_and_tell(payload: str, group: Any) -> None:
    """The life of a rank that says what it found set."""

    def told(kind: str) -> None:
        switch_on(kind)
        tell(group.rank)

    switch_on = determinism.switch_on
    with mock.patch.object(determinism, "switch_on", told):
        run_model(payload, group)


def test_the_switch_of_deterministic_runs_reaches_all_ranks(soft_npu: Run) -> None:
    """Also over what nnal's set_env.sh exports; sampling's sums are not left to the device."""
    done = soft_npu("-c", DETERMINISTIC, devices=2, LCCL_DETERMINISTIC="0", ATB_MATMUL_SHUFFLE_K_ENABLE="1")
    found = "[True, False, 'true', '1', '0', '1', '0']"
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith(("rank ", "sums ")))
    assert lines == [f"rank 0 {found}", f"rank 1 {found}", "sums on the device: 0"], done.stdout + done.stderr


DEVICES = """
import ctypes
from atb_models.cli import main
assert main(["env"]) == 0
print("taken:", ctypes.CDLL("libascendcl.so").aclrtGetDevice(ctypes.byref(ctypes.c_int32())) == 0)
"""


def test_env_shows_the_devices_and_takes_none(soft_npu: Run) -> None:
    done = soft_npu("-c", DEVICES, devices=2)
    assert "torch_npu 2." in done.stdout and "Ascend devices: 2 x Ascend910B4\n" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "taken: False"
    assert "PYTORCH_NPU_ALLOC_CONF                   -" in done.stdout, "what is set on the way is not the user's"


def test_env_without_cann(without_cann: None) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    command = [sys.executable, "-m", "atb_models.cli", "env"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Ascend devices: none seen; device npu: CANN is not there" in done.stdout


def test_a_driver_that_refuses_is_quoted(soft_npu: Run, root: Path) -> None:
    wrong = {"INF_NAN_MODE_ENABLE": "0", "INF_NAN_MODE_FORCE_DISABLE": "0"}
    done = ask("--device", "npu", root=root, run=soft_npu, **wrong)
    assert done.returncode == 2 and "cannot use number 0: INF_NAN_MODE_ENABLE shouldn't be set to 0" in done.stderr


def test_a_rank_without_a_device_of_its_own_is_refused(soft_npu: Run) -> None:
    program = "from atb_models.machine.device import rank_device; rank_device('npu', 2)"
    done = soft_npu("-c", program, devices=2)
    assert "rank 2 of this host has no device of its own: 2 NPU devices are visible" in done.stderr


def test_the_launcher_starts_a_rank_on_each_listed_device(soft_npu: Run) -> None:
    words = ("-m", "atb_models.cli", "launch", "--device", "npu", *SHORT)
    done = soft_npu(*words, devices=8, ASCEND_RT_VISIBLE_DEVICES="4,6")
    assert done.returncode == 0, done.stderr
    assert "Answer[0]: Deep learning is" in done.stdout
    refused = soft_npu(*words, devices=4, ASCEND_RT_VISIBLE_DEVICES="4,6")
    assert refused.returncode == 2 and "names 2 devices up to number 6, 4 exist" in refused.stderr


def test_the_doctor_says_yes_where_an_operator_computes(soft_npu: Run) -> None:
    done = soft_npu("-m", "atb_models.cli", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line[:2] in ("ok", "? ", "FA")]
    assert [line.split()[0] for line in lines if line.split()[1] not in ("driver", "CANN")] == ["ok"] * 6
    assert done.stdout.splitlines()[-1] == "yes"


def test_the_doctor_says_what_is_missing(without_cann: None) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    command = [sys.executable, "-m", "atb_models.cli", "doctor"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "FAIL  libraries   CANN is not there or not set up (lib" in done.stdout
