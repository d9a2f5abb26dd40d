"""A user without a home folder: no HOME, and a user id that the system does not know, as containers give them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atb_models import env_report
from atb_models.errors import ConfigError
from atb_models.files import expanded

HOMELESS = """
import os, pwd, sys
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
os.environ.pop("HOME", None)
from atb_models.cli import main
sys.exit(main(sys.argv[1:]))
"""


def homeless(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HOMELESS, *words]
    return subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, timeout=120)


def test_env_works() -> None:
    ended = homeless("env")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "MINDIE_LOG_PATH" in ended.stdout


def test_a_run_works() -> None:
    words = ["run", "--device", "cpu", "--max_output_length", "2", "--input_texts", "hi"]
    ended = homeless(*words, MINDIE_LOG_LEVEL="ERROR")
    assert ended.returncode == 0 and "Answer[0]" in ended.stdout, ended.stderr


@pytest.mark.parametrize(
    ("words", "environ", "message"),
    [
        (["run"], {"MINDIE_LOG_TO_FILE": "1"}, "MINDIE_LOG_PATH is not set, and its default ~/mindie/log needs a home"),
        (["env"], {"MINDIE_LOG_PATH": "~/log"}, "MINDIE_LOG_PATH='~/log' must be a path"),
        (["run", "--model_path", "~/model"], {}, "~/model: ~ stands for no folder here; give the whole path"),
        (["run", "--model_path", "~nobody-9/x"], {}, "~nobody-9/x: ~nobody-9 stands for no folder here"),
        (["run", "--model_path", "~/model", "--download"], {}, "~/model: ~ stands for no folder here"),
        (["graph", "--svg", "~/graph.svg"], {}, "~/graph.svg: ~ stands for no folder here"),
    ],
)
def test_what_needs_a_home_is_named(words: list[str], environ: dict[str, str], message: str) -> None:
    ended = homeless(*words, **environ)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith(f"atb-models: error: {message}")


@pytest.mark.parametrize("home", ["/dev/null", "/dev/null/below", "/nonexistent"])
def test_env_works_where_the_home_cannot_be_read(home: str) -> None:
    command = [sys.executable, "-m", "atb_models", "env"]
    ended = subprocess.run(command, env=os.environ | {"HOME": home}, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "version.info"), ValueError("not UTF-8")])
def test_env_works_where_the_vendors_files_cannot_be_read(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def driver() -> str:
        raise error

    monkeypatch.setattr(env_report, "driver", driver)
    out = io.StringIO()
    env_report.print_report(out, {})
    assert f"Ascend driver: none seen; {error}" in out.getvalue()


def test_a_path_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert expanded("~/a") == Path("/somewhere/a") and expanded("a/~") == Path("a/~")
    with pytest.raises(ConfigError, match="~no-such-user stands for no folder"):
        expanded("~no-such-user/a")
