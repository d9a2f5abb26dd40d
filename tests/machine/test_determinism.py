"""The same bits in every run: what the switch sets, what contradicts it, and the bits themselves on a CPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from atb_models import LLM, SamplingParams
from atb_models.engine.config import EngineConfig
from atb_models.engine.sampling import draws
from atb_models.errors import ConfigError
from atb_models.machine import determinism, device, npu

NAMES = [name for needed in determinism.NEEDED.values() for name in needed]
UNLIKE = {
    "HCCL_DETERMINISTIC": "false",
    "LCCL_DETERMINISTIC": "no",
    "ATB_MATMUL_SHUFFLE_K_ENABLE": "true",
    "CLOSE_MATMUL_K_SHIFT": "0",
    "ATB_LLM_LCOC_ENABLE": "1",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """None of the variables is set, before and after."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    yield
    memory: Any = torch.utils.deterministic
    torch.use_deterministic_algorithms(False)
    memory.fill_uninitialized_memory = True


def test_what_an_npu_needs() -> None:
    determinism.export("npu")
    assert {name: os.environ[name] for name in UNLIKE} == {
        "HCCL_DETERMINISTIC": "true",
        "LCCL_DETERMINISTIC": "1",
        "ATB_MATMUL_SHUFFLE_K_ENABLE": "0",
        "CLOSE_MATMUL_K_SHIFT": "1",
        "ATB_LLM_LCOC_ENABLE": "0",
    }
    determinism.check("npu")


@pytest.mark.parametrize("name", UNLIKE)
def test_the_users_values_are_not_replaced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the NPU would have been the first choice only."""
    monkeypatch.setenv(name, UNLIKE[name])
    monkeypatch.setattr(npu, "installed", lambda: True)
    needed = determinism.NEEDED["npu"][name][0]
    for wanted in ("npu", None):
        with pytest.raises(ConfigError, match=f"^deterministic needs {name}={needed}, .* has {UNLIKE[name]}; unset it"):
            device.choose_device(wanted, deterministic=True)
    assert [other for other in NAMES if other in os.environ] == [name]
    assert device.choose_device("cpu", deterministic=True) == "cpu"


def test_values_that_will_do_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HCCL_DETERMINISTIC", "strict")
    monkeypatch.setenv("LCCL_DETERMINISTIC", "")
    determinism.export("npu")
    assert (os.environ["HCCL_DETERMINISTIC"], os.environ["LCCL_DETERMINISTIC"]) == ("strict", "1")


def test_what_the_vendors_script_exports_is_replaced_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LCCL_DETERMINISTIC", "0")
    monkeypatch.setenv("ATB_MATMUL_SHUFFLE_K_ENABLE", "1")
    with caplog.at_level(logging.INFO):
        determinism.export("npu")
    assert (os.environ["LCCL_DETERMINISTIC"], os.environ["ATB_MATMUL_SHUFFLE_K_ENABLE"]) == ("1", "0")
    assert "LCCL_DETERMINISTIC is 1 instead of 0, the default of nnal" in caplog.text


def test_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.choose_device("cuda") == "cuda" and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert device.choose_device("cuda", deterministic=True) == "cuda"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(ConfigError, match="deterministic needs CUBLAS_WORKSPACE_CONFIG=:4096:8"):
        device.choose_device("cuda", deterministic=True)


@pytest.mark.parametrize(("kind", "name"), [("npu", "HCCL_DETERMINISTIC"), ("cuda", "CUBLAS_WORKSPACE_CONFIG")])
def test_a_process_that_has_used_the_device(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its libraries have looked, and not found; where they have found it, nothing is to be said."""
    monkeypatch.setattr(torch, kind, SimpleNamespace(is_initialized=lambda: True), raising=False)
    with pytest.raises(ConfigError, match=f"{name}=.* before the first use of {kind}, .*; start a new process"):
        determinism.export(kind)
    assert name not in os.environ
    for variable, right in determinism.NEEDED[kind].items():
        monkeypatch.setenv(variable, right[0])
    determinism.export(kind)


def test_torch_is_told_but_for_a_cpu() -> None:
    determinism.switch_on("cpu")
    assert not torch.are_deterministic_algorithms_enabled()
    determinism.switch_on("cuda")
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


def test_sampling_adds_up_on_the_cpu() -> None:
    class Elsewhere:
        """A tensor of a device that refuses to add."""

        device = torch.device("cpu")

        def cpu(self) -> torch.Tensor:
            return torch.tensor([[0.25, 0.5, 0.25]])

    probs: Any = Elsewhere()
    determinism.switch_on("cuda")
    assert draws.running_sums(probs).tolist() == [[0.25, 0.75, 1.0]]


def test_ranks_are_told() -> None:
    assert EngineConfig.from_json(EngineConfig(deterministic=True).to_json()).deterministic


def test_a_cpu_repeats_its_bits() -> None:
    """Without the switch too; both ranks share the sums."""
    sampled = SamplingParams(max_tokens=4, temperature=1.0, seed=5, logprobs=1)
    runs = []
    for deterministic in (True, False):
        with LLM(device="cpu", tp=2, deterministic=deterministic) as llm:
            runs.append((llm.prompt_logits(list(range(3, 60))), llm.generate([[1, 2, 3]], sampled)[0].logprobs))
    (logits, logprobs), (again, logprobs_again) = runs
    assert torch.equal(logits, again) and logprobs == logprobs_again
