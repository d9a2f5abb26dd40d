"""The check-list for an NPU: each step by itself, and the whole on a machine that has none."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from atb_models import doctor
from atb_models.cli import main
from atb_models.errors import ConfigError
from atb_models.machine import npu
from atb_models.wording import install_command


def test_the_first_failure_ends_the_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(npu, "installed", lambda: False)
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["ok", "FAIL"] + ["-"] * (len(doctor.CHECKS) - 2)
    assert f"torch_npu is not installed; {install_command('npu')}, or use --device cpu" in lines[2]
    assert lines[-1] == "no: first fix what the line with FAIL reports"


def test_what_is_unusual_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def unusual() -> str:
        raise doctor.Unusual("never seen")

    def broken() -> str:
        raise RuntimeError("first line\nsecond line")

    out = io.StringIO()
    monkeypatch.setattr(doctor, "CHECKS", {"one": unusual, "two": lambda: "fine"})
    assert doctor.print_checks(out)
    assert out.getvalue().splitlines()[1:] == ["?     one         never seen", "ok    two         fine", "yes"]
    monkeypatch.setattr(doctor, "CHECKS", {"one": broken})
    assert not doctor.print_checks(out)
    assert "FAIL  one         first line\nno:" in out.getvalue()


def test_driver(tmp_path: Path) -> None:
    with pytest.raises(doctor.Unusual, match="version unknown, .*: no davinci devices; in a container"):
        doctor.driver(tmp_path, tmp_path / "version.info")
    for name in ("davinci10", "davinci2", "davinci_manager"):
        (tmp_path / name).touch()
    (tmp_path / "version.info").write_text("Version=25.2.0\nascendhal_version=7\n")
    said = doctor.driver(tmp_path, tmp_path / "version.info")
    assert said == f"version 25.2.0, {tmp_path}: davinci2, davinci10"


def test_cann(tmp_path: Path) -> None:
    with pytest.raises(doctor.Unusual, match=r"set_env\.sh was not sourced"):
        doctor.cann({})
    home = {"ASCEND_HOME_PATH": str(tmp_path)}
    assert doctor.cann(home) == f"version unknown, {tmp_path}"
    (tmp_path / "x86_64-linux").mkdir()
    (tmp_path / "x86_64-linux" / "ascend_toolkit_install.info").write_text("package_name=x\nversion=8.2.RC1\n")
    assert doctor.cann(home) == f"version 8.2.RC1, {tmp_path}"


def test_cann_in_a_folder_that_is_a_link(tmp_path: Path) -> None:
    """As `latest` has them of the version that is installed."""
    (tmp_path / "9.2.0").mkdir()
    (tmp_path / "9.2.0" / "ascend_toolkit_install.info").write_text("version=9.2.0\n")
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "aarch64-linux").symlink_to(tmp_path / "9.2.0")
    assert doctor.cann({"ASCEND_HOME_PATH": f"{tmp_path}/latest"}) == f"version 9.2.0, {tmp_path}/latest"


def test_nnal(tmp_path: Path) -> None:
    assert doctor.nnal({}) == "not set up (ATB_HOME_PATH is not set), and not needed"
    home = tmp_path / "latest" / "atb" / "cxx_abi_1"
    home.mkdir(parents=True)
    assert doctor.nnal({"ATB_HOME_PATH": str(home)}) == f"version unknown, {home}"
    text = "    Ascend-cann-atb : 8.2.RC2\n    Ascend-cann-atb Version : 8.2.RC2.B030\n    Platform : aarch64\n"
    (tmp_path / "latest" / "version.info").write_text(text)
    assert doctor.nnal({"ATB_HOME_PATH": str(home)}) == f"version 8.2.RC2.B030, {home}"


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npu, "installed", lambda: True)
    monkeypatch.setattr(doctor.metadata, "version", {"torch": "2.13.0+cpu", "torch_npu": "2.10.0"}.__getitem__)
    with pytest.raises(ConfigError, match=r"torch_npu 2\.10\.0 does not go with torch"):
        doctor.CHECKS["packages"]()
