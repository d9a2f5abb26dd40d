"""Bringing up the Ascend device, as far as it needs no torch_npu: what is missing is said in words, with the remedy."""

from __future__ import annotations

import logging
import os
import re

import pytest

from atb_models.errors import ConfigError
from atb_models.machine import npu
from atb_models.machine.device import present_device
from atb_models.ranks.process_group import BACKENDS
from atb_models.wording import install_command


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npu, "installed", lambda: False)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch_npu is installed, CANN is not."""

    def load(**_: bool) -> None:
        raise ConfigError("device npu: CANN is not there")

    monkeypatch.setattr(npu, "installed", lambda: True)
    monkeypatch.setattr(npu, "load", load)


def test_an_npu_that_is_asked_for_must_be_there(absent: None) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"torch_npu is not installed; {install_command('npu')}, or")):
        present_device("npu")


def test_nothing_is_said_of_an_npu_nobody_has_nor_wants(absent: None, caplog: pytest.LogCaptureFixture) -> None:
    assert present_device(None) in ("cuda", "cpu") and present_device("cpu") == "cpu"
    assert not caplog.text


def test_an_npu_that_cannot_be_used_is_a_warning_unless_it_is_asked_for(
    broken: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert present_device("cpu") == "cpu" and not caplog.text
        assert present_device(None) in ("cuda", "cpu")
    assert "torch_npu is installed, but no NPU is used: device npu: CANN is not there" in caplog.text
    with pytest.raises(ConfigError, match="CANN is not there"):
        present_device("npu")


@pytest.mark.parametrize("torch_npu", ["2.13.0", "2.13.0.post2", "2.13.0rc1"])
def test_versions_that_go_together(torch_npu: str) -> None:
    npu.check_versions("2.13.0+cpu", torch_npu)
    with pytest.raises(ConfigError, match=r"python[\d.]* -m pip install torch==2\.13\.0,"):
        npu.check_versions("2.12.0", torch_npu)


def test_versions_that_do_not_go_together() -> None:
    with pytest.raises(
        ConfigError,
        match=r"torch_npu 2\.10\.0\.post4 does not go with torch 2\.13\.0\+cpu; \S+ -m pip install torch==2\.10\.0,",
    ):
        npu.check_versions("2.13.0+cpu", "2.10.0.post4")


NO_FILE = "cannot open shared object file: No such file or directory"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (f"libhccl.so: {NO_FILE}", "CANN is not there or not set up (libhccl.so was not found); source "),
        (f"libascend_hal.so: {NO_FILE}", "the Ascend driver is not there (libascend_hal.so)"),
        ("/x/lib.so: undefined symbol: aclrtNew", "CANN is older or newer than this torch_npu needs (no aclrtNew)"),
        ("something else\nand more", "torch_npu cannot be imported: something else"),
        ("", "no reason given"),
    ],
)
def test_what_an_import_error_means(message: str, said: str) -> None:
    assert said in npu.import_problem(message) and "\n" not in npu.import_problem(message)


def test_what_was_set_for_an_import_that_fails_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        seen.update(os.environ)
        raise ImportError(f"libhccl.so: {NO_FILE}")

    seen: dict[str, str] = {}
    names = [*npu.DEFAULTS, "HCCL_DETERMINISTIC"]
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setenv("LCCL_DETERMINISTIC", "0")  # as nnal's set_env.sh does
    monkeypatch.setattr(npu, "installed", lambda: True)
    monkeypatch.setattr(npu.metadata, "version", lambda name: "2.13.0")
    monkeypatch.setattr(npu, "import_module", fail)
    assert present_device(None, deterministic=True) in ("cuda", "cpu")
    assert {name: seen[name] for name in names} == {
        "HCCL_HOST_SOCKET_PORT_RANGE": "auto",
        "HCCL_NPU_SOCKET_PORT_RANGE": "auto",
        "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
        "INF_NAN_MODE_ENABLE": "1",
        "HCCL_DETERMINISTIC": "true",
    }
    assert not set(names) & set(os.environ)
    assert (seen["LCCL_DETERMINISTIC"], os.environ["LCCL_DETERMINISTIC"]) == ("1", "0")


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        ({}, ("auto", "auto", "1", None)),
        ({"HCCL_IF_BASE_PORT": "50000"}, (None, "auto", "1", None)),
        ({"HCCL_IF_BASE_PORT": ""}, ("auto", "auto", "1", None)),
        ({"HCCL_HOST_SOCKET_PORT_RANGE": "60000-60050"}, ("60000-60050", "auto", "1", None)),
        ({"HCCL_NPU_SOCKET_PORT_RANGE": "61000-61050"}, ("auto", "61000-61050", "1", None)),
        ({"INF_NAN_MODE_ENABLE": "0"}, ("auto", "auto", "0", "1")),
        ({"INF_NAN_MODE_ENABLE": "0", "INF_NAN_MODE_FORCE_DISABLE": "0"}, ("auto", "auto", "0", "0")),
        ({"INF_NAN_MODE_FORCE_DISABLE": "1"}, ("auto", "auto", None, "1")),
        ({"HCCL_HOST_SOCKET_PORT_RANGE": "", "HCCL_NPU_SOCKET_PORT_RANGE": ""}, ("auto", "auto", "1", None)),
        ({"INF_NAN_MODE_ENABLE": "", "INF_NAN_MODE_FORCE_DISABLE": ""}, ("auto", "auto", "1", "")),
        ({"INF_NAN_MODE_ENABLE": "0", "INF_NAN_MODE_FORCE_DISABLE": ""}, ("auto", "auto", "0", "1")),
    ],
)
def test_the_users_variable_wins_over_each_default(
    clean_environ: None, monkeypatch: pytest.MonkeyPatch, users: dict[str, str], expected: tuple[str | None, ...]
) -> None:
    """Also one that says the same in another way: HCCL would obey our range of ports, not the user's first port."""
    names = "HCCL_HOST_SOCKET_PORT_RANGE", "HCCL_NPU_SOCKET_PORT_RANGE", "INF_NAN_MODE_ENABLE"
    monkeypatch.setattr(os, "environ", {**os.environ, **users})
    npu._set_defaults()
    assert tuple(os.environ.get(name) for name in (*names, "INF_NAN_MODE_FORCE_DISABLE")) == expected


def test_an_empty_list_of_devices_is_none(clean_environ: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, kept in (("", None), ("1", "1")):
        monkeypatch.setattr(os, "environ", {**os.environ, "ASCEND_RT_VISIBLE_DEVICES": value})
        npu._set_defaults()
        assert os.environ.get("ASCEND_RT_VISIBLE_DEVICES") == kept


def test_the_launcher_looks_at_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "4,6")
    with npu.all_visible():
        assert "ASCEND_RT_VISIBLE_DEVICES" not in os.environ
    assert os.environ["ASCEND_RT_VISIBLE_DEVICES"] == "4,6"


def test_the_library_of_its_collectives() -> None:
    assert BACKENDS["npu"] == "hccl"
