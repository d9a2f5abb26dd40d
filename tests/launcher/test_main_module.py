"""`python -m atb_models` and `python -m atb_models.cli` are the command `atb-models`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from atb_models import cli


@pytest.mark.parametrize("module", ["atb_models", "atb_models.cli"])
def test_module_is_the_command(root, demo, module):
    ended = subprocess.run([sys.executable, "-m", module, "demo_path"], cwd=root, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{demo}\n", "")
    ended = subprocess.run([sys.executable, "-m", module, "walk"], cwd=root, capture_output=True, text=True)
    assert ended.returncode == 2 and "invalid choice: 'walk'" in ended.stderr


@pytest.mark.parametrize("command", ["env", "demo_path"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_a_command(capsys, command, flag):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, flag])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: atb-models {command}" in out and str(cli.COMMANDS[command].__doc__) in out


@pytest.mark.parametrize("command", ["env", "demo_path"])
def test_flag_of_a_command_that_has_none_is_refused(capsys, command):
    assert cli.main([command, "--stream"]) == 2
    assert "unexpected word '--stream'" in capsys.readouterr().err
