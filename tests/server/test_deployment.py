"""The files of examples/service agree with the service: its flags, limits and statuses."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from atb_models.errors import ConfigError
from atb_models.server.args import DEFAULT_PORT, parse_args
from atb_models.server.front import KEEP_ALIVE_S
from atb_models.server.http.access import Access

FOLDER = "examples/service"
DEFAULTS = parse_args([])


@pytest.fixture
def unit(root: Path) -> str:
    return (root / FOLDER / "atb-models.service").read_text()


@pytest.fixture
def lines(root: Path) -> list[list[str]]:
    """Instructions of the Containerfile, their keyword first."""
    text = (root / FOLDER / "Containerfile").read_text().replace("\\\n", " ")
    return [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]


def _number(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    assert match is not None, pattern
    return float(match[1])


def test_the_unit_starts_a_service_that_may_drain(unit: str) -> None:
    command = unit.split("ExecStart=")[1].replace("\\\n", " ").splitlines()[0]
    program, serve, *flags = shlex.split(command)
    assert (Path(program).name, serve) == ("atb-models", "serve")
    assert _number(r"TimeoutStopSec=(\d+)", unit) > parse_args(flags).drain_timeout
    assert _number(r"RestartPreventExitStatus=(\d+)", unit) == ConfigError.exit_status


def test_systemd_finds_no_fault_with_the_unit(unit: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    file = tmp_path / "atb-models.service"
    file.write_text(re.sub(r"(?<=ExecStart=)\S+", sys.executable, unit).replace("User=atb-models", "User=root"))
    ran = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)
    assert str(file) not in ran.stderr and ran.returncode == 0, ran.stderr


def test_the_container_holds_what_it_installs(lines: list[list[str]], root: Path) -> None:
    sources = [name for keyword, words in lines if keyword == "COPY" for name in words.split()[:-1]]
    assert sources and all((root / name).exists() for name in sources)
    of_setup = re.findall(r'"([\w.]+\.(?:md|py))"', (root / "pyproject.toml").read_text().split("[tool.")[0])
    assert {"LICENSE", "pyproject.toml", "setup.py", "build_backend.py", "atb_models", *of_setup} <= set(sources)


def test_the_container_serves_at_the_default_port(lines: list[list[str]]) -> None:
    values = dict(lines)
    program, serve, *flags = json.loads(values["ENTRYPOINT"])
    assert (program, serve) == ("atb-models", "serve")
    assert parse_args(flags).port == DEFAULT_PORT == int(values["EXPOSE"])
    assert f":{DEFAULT_PORT}/health" in values["HEALTHCHECK"]


@pytest.mark.parametrize("document", ["README.md", "README.zh.md"])
def test_the_container_is_started_with_flags_that_exist(root: Path, document: str) -> None:
    text = (root / FOLDER / document).read_text("utf-8").replace("\\\n", " ")
    match = re.search(r"podman run .* atb-models (--.*)", text)
    assert match is not None
    parse_args(shlex.split(match[1]))
    assert _number(r"--stop-timeout (\d+)", text) > DEFAULTS.drain_timeout


@pytest.mark.parametrize("name", ["nginx.conf", "Caddyfile"])
def test_proxies_know_the_limits(root: Path, name: str) -> None:
    text = (root / FOLDER / name).read_text()
    assert f"127.0.0.1:{DEFAULT_PORT}" in text
    assert _number(r"read_timeout (\d+)s", text) > DEFAULTS.request_timeout
    assert _number(r"(?:max_body_size|max_size) (\d+)[mM]", text) * 2**20 == Access.max_body_bytes
    idle_s = re.search(r"\bkeepalive (\d+)s", text)
    assert idle_s is None or float(idle_s[1]) < KEEP_ALIVE_S
