"""The shell scripts, with an interpreter that records what it was started with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

SCRIPT = "examples/models/deepseek/run_pa_deepseek_moe.sh"
SEED_DEFAULTS = {
    "INF_NAN_MODE_ENABLE": "0",
    "ATB_OPERATION_EXECUTE_ASYNC": "1",
    "TASK_QUEUE_ENABLE": "1",
    "ATB_CONVERT_NCHW_TO_ND": "1",
    "ATB_CONTEXT_WORKSPACE_SIZE": "1",
    "ATB_LLM_ENABLE_AUTO_TRANSPOSE": "0",
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
}
DEFAULT_WORDS = ["--input_texts=Who is the CEO of Google?", "--max_output_length=10", "--is_chat_model"]


HELPFUL = "You are a helpful assistant."
# script -> the model whose weights it needs, and its system prompt
OTHERS = {
    "examples/models/qwen/run_pa_qwen_moe.sh": ("Qwen/Qwen1.5-MoE-A2.7B-Chat", HELPFUL),
    "examples/models/xverse/run_pa_xverse_moe.sh": ("xverse/XVERSE-MoE-A4.2B", HELPFUL),
    "examples/models/qwen3/run_pa_qwen3.sh": ("Qwen/Qwen3-30B-A3B", HELPFUL),
    "examples/models/mixtral/run_pa_mixtral.sh": ("mistralai/Mixtral-8x7B-Instruct-v0.1", None),
    "examples/models/llama/run_pa_llama.sh": ("meta-llama/Llama-3.1-8B-Instruct", HELPFUL),
    "examples/models/deepseek_v2/run_pa_deepseek_v2.sh": ("deepseek-ai/DeepSeek-V2-Lite-Chat", None),
}
OTHERS_WORDS = ["--input_texts=Give me a short introduction to large language model.", "--max_output_length=512"]


@pytest.fixture
def fake_python(tmp_path):
    """An interpreter that writes its pid, arguments and environment to a file."""
    path = tmp_path / "python"
    record = tmp_path / "record.json"
    path.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"json.dump([os.getpid(), sys.argv[1:], dict(os.environ)], open({str(record)!r}, 'w'))\n"
    )
    path.chmod(0o755)
    return path, record


@pytest.fixture
def run_script(root, tmp_path, clean_environ, monkeypatch, fake_python):
    """Run a script in another folder; returns the arguments and environment of its interpreter."""
    python, record = fake_python
    monkeypatch.delenv("VENV", raising=False)

    def run(*argv, script=SCRIPT, **environ):
        process = subprocess.Popen(
            ["bash", str(root / script), *argv], cwd=tmp_path, env={**os.environ, "PYTHON": str(python), **environ}
        )
        assert process.wait(30) == 0
        pid, words, seen = json.loads(record.read_text())
        assert pid == process.pid, "the script must exec, so that its pid becomes torchrun's"
        assert words[0] == str(root / "examples" / ("quickstart.py" if "quickstart" in str(script) else "launch.py"))
        return words[1:], seen

    return run


@pytest.mark.parametrize(
    "argv",
    [
        ["/w", "-trust_remote_code"],
        ["-trust_remote_code", "/w"],
        ["/a b", "--trust_remote_code"],
        ["--trust_remote_code", "/a b"],
        ["/a b", "--max_output_length", "3", "--input_texts", "two words", "it's $5"],
        [],
    ],
)
def test_arguments_follow_the_defaults(run_script, argv):
    assert run_script(*argv)[0] == [*DEFAULT_WORDS, *argv]


def test_seed_variables_are_exported_if_unset(run_script):
    _, seen = run_script("/w")
    assert {name: seen.get(name) for name in SEED_DEFAULTS} == SEED_DEFAULTS
    assert seen["ATB_LAUNCHER_DEFAULTS"].split() == list(SEED_DEFAULTS)
    assert (
        "ASCEND_RT_VISIBLE_DEVICES" not in seen and "MASTER_PORT" not in seen
    )  # the launcher must know whose they are


def test_users_exports_are_kept(run_script):
    mine = dict.fromkeys(SEED_DEFAULTS, "7") | {
        "ASCEND_RT_VISIBLE_DEVICES": "1",
        "MASTER_PORT": "20007",
    }
    _, seen = run_script("/w", **mine)
    assert {name: seen[name] for name in mine} == mine
    assert "ATB_LAUNCHER_DEFAULTS" not in seen


def test_an_empty_value_counts_as_unset(run_script):
    words, seen = run_script("/w", **dict.fromkeys(SEED_DEFAULTS, ""), input_text="", max_output_length="")
    assert {name: seen[name] for name in SEED_DEFAULTS} == SEED_DEFAULTS
    assert seen["ATB_LAUNCHER_DEFAULTS"].split() == list(SEED_DEFAULTS)
    assert words == [*DEFAULT_WORDS, "/w"]


def test_no_default_contradicts_a_users_variable(run_script):
    _, seen = run_script("/w", INF_NAN_MODE_FORCE_DISABLE="0")
    assert "INF_NAN_MODE_ENABLE" not in seen and "INF_NAN_MODE_ENABLE" not in seen["ATB_LAUNCHER_DEFAULTS"]


def test_settings_come_from_the_environment(run_script):
    words, _ = run_script("/w", input_text="-1 + 2 = ?", max_output_length="5", extra_param="")
    assert words == ["--input_texts=-1 + 2 = ?", "--max_output_length=5", "/w"]
    words, _ = run_script("/w", extra_param="--dtype bf16 --stream")
    assert words == [*DEFAULT_WORDS[:2], "--dtype", "bf16", "--stream", "/w"]


def test_words_of_extra_param_are_no_patterns(run_script, tmp_path):
    (tmp_path / "a").touch()
    words, _ = run_script("/w", extra_param="--stop ? *")
    assert words == [*DEFAULT_WORDS[:2], "--stop", "?", "*", "/w"]


@pytest.mark.parametrize("ids", [["--input_ids", "1,2"], ["--input_ids=1,2"]])
def test_token_ids_are_no_chat_unless_asked(run_script, ids):
    assert run_script("/w", *ids)[0] == [*DEFAULT_WORDS[:2], "/w", *ids]
    assert run_script("/w", *ids, "--is_chat_model")[0] == [*DEFAULT_WORDS[:2], "/w", *ids, "--is_chat_model"]
    conversations = ["--input_file", "chat.jsonl"]
    assert run_script("/w", *ids, *conversations)[0] == [*DEFAULT_WORDS, "/w", *ids, *conversations]


@pytest.mark.parametrize("script", OTHERS)
def test_scripts_of_the_other_models(run_script, script):
    """The conversation of the documents that deploy them, and the same variables."""
    model, prompt = OTHERS[script]
    words, seen = run_script("/w", "-trust_remote_code", script=script)
    system = [] if prompt is None else [f"--system_prompt={prompt}"]
    assert words == [*OTHERS_WORDS, "--is_chat_model", *system, "/w", "-trust_remote_code"]
    assert {name: seen.get(name) for name in SEED_DEFAULTS} == SEED_DEFAULTS
    assert seen["ATB_LAUNCHER_MODEL"] == model


def test_every_script_is_tested(root):
    assert {SCRIPT, *OTHERS} == {str(path.relative_to(root)) for path in root.glob("examples/models/*/*.sh")}


@pytest.mark.parametrize("script", [SCRIPT, *OTHERS])
def test_system_prompt_is_of_chats_that_have_none(run_script, script):
    def system(*argv, **environ):
        words, _ = run_script(*argv, script=script, **{"system_prompt": "Be brief. * 'x'", **environ})
        return [word for word in words if word.startswith("--system_prompt")]

    assert system("/w") == ["--system_prompt=Be brief. * 'x'"]
    assert system("/w", "--is_chat_model", extra_param="--stream") == ["--system_prompt=Be brief. * 'x'"]
    assert system("/w", system_prompt="") == []
    assert system("/w", extra_param="") == []
    for given in (["--input_ids", "1,2"], ["--input_file=chat.jsonl"]):
        assert system("/w", *given, "--is_chat_model") == []


@pytest.mark.parametrize(
    ("script", "argv"),
    [*((script, []) for script in OTHERS), *(([*OTHERS][0], [flag]) for flag in ("--tp=2", "--download"))],
)
def test_without_weights_a_script_says_what_it_needs(root, tmp_path, clean_environ, script, argv):
    environ = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", str(root / script), *argv]
    ended = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    lines, (model, _) = ended.stderr.splitlines(), OTHERS[script]
    assert lines[0].startswith(f"atb-models: error: no model path, but this script needs the weights of {model}")
    assert f"  modelscope download --model {model} " in lines[1] and "Traceback" not in ended.stderr


def test_script_works_through_a_link(run_script, root, tmp_path):
    link = tmp_path / "run.sh"
    link.symlink_to(root / SCRIPT)
    assert run_script("/w", script=link)[0] == [*DEFAULT_WORDS, "/w"]


def test_missing_interpreter_is_named(root, clean_environ):
    environ = {**os.environ, "PYTHON": "/none/python"}
    ended = subprocess.run(["bash", str(root / SCRIPT)], env=environ, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (127, "atb-models: error: /none/python: no such Python\n")


class TestVirtualEnvironment:
    """examples/venv.sh, with interpreters that lack something."""

    def source(self, root, tmp_path, body, **environ):
        base = tmp_path / "base-python"
        base.write_text(f"#!/usr/bin/env bash\n{body}\n")
        base.chmod(0o755)
        command = f'source "{root}/examples/venv.sh"; ensure_venv; echo "$python"'
        environ = {**os.environ, "PYTHON": str(base), "VENV": str(tmp_path / "new venv"), **environ}
        return subprocess.run(["bash", "-c", command], env=environ, capture_output=True, text=True, timeout=60)

    def test_missing_venv_package_is_a_named_error(self, root, tmp_path):
        body = f'case "$2" in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"'
        ended = self.source(root, tmp_path, body)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        assert ended.returncode == 1
        assert ended.stderr == f"atb-models: error: python3-venv is missing: apt install python{version}-venv\n"
        assert not (tmp_path / "new venv").exists()

    @pytest.mark.parametrize(("version", "accepted"), [((3, 9), 0), ((3, 10), 1), ((3, 12), 1), ((3, 13), 0)])
    def test_range_of_pythons(self, root, tmp_path, version, accepted):
        """The script's own condition, with the interpreter's version replaced."""
        code = f'code="$2"; exec {sys.executable} -c "import sys; sys.version_info = {(*version, 1)}; $code"'
        body = f'case "$1" in --version) echo Python {version[0]}.{version[1]}.1; exit;; esac; case "$2" in *ensurepip*) exit 1;; esac; {code}'  # noqa: E501
        ended = self.source(root, tmp_path, body)
        assert ended.returncode == 1
        assert ("Python 3.10 to 3.12 is needed" in ended.stderr) == (not accepted), ended.stderr
        assert ("python3-venv is missing" in ended.stderr) == bool(accepted), ended.stderr

    def test_old_python_is_a_named_error(self, root, tmp_path):
        ended = self.source(root, tmp_path, 'case "$1" in --version) echo Python 3.9.2;; *) exit 1;; esac')
        assert (ended.returncode, "Python 3.10 to 3.12 is needed" in ended.stderr) == (1, True)
        assert "is Python 3.9.2" in ended.stderr

    def test_missing_python_is_a_named_error(self, root, tmp_path):
        ended = self.source(root, tmp_path, "", PYTHON="no-such-python")
        assert (ended.returncode, "no-such-python is not installed" in ended.stderr) == (1, True)

    def test_failed_installation_is_named_and_repeated(self, root, tmp_path):
        """A torch release that does not exist: pip fails, and the environment does not count as installed."""
        pip = f'if [ "$2 $3" = "pip install" ]; then echo no network >&2; exit 1; fi; exec {sys.executable} "$@"'
        venv = tmp_path / "new venv" / "bin"
        venv.mkdir(parents=True)
        (venv / "python").write_text(f"#!/usr/bin/env bash\n{pip}\n")
        (venv / "python").chmod(0o755)
        ended = self.source(root, tmp_path, "", TORCH="torch==9.9")
        assert ended.returncode == 1
        assert "no network" in ended.stderr and "pip could not install torch==9.9" in ended.stderr
        assert not list(venv.parent.glob(".atb*"))


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("pyproject.toml", True),
        ("build_backend.py", True),
        ("atb_models/ops/native/csrc/simd/avx2.h", True),
        ("atb_models/ops/native/build.py", True),
        ("atb_models/ops/cpu.py", False),
    ],
)
def test_an_installation_is_repeated_for_what_it_compiles(root, tmp_path, file, counts):
    """A change of the CPU library's sources, but not of Python that runs from the tree."""
    for name in ("pyproject.toml", "setup.py", "build_backend.py", "examples/venv.sh", "atb_models/ops/cpu.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    native = "atb_models/ops/native"
    shutil.copytree(root / native, tmp_path / native, ignore=shutil.ignore_patterns("lib", "__pycache__"))

    def digest():
        command = f'source "{tmp_path}/examples/venv.sh"; installed_files'
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout

    before = digest()
    assert digest() == before and len(before) == 65
    (tmp_path / file).write_text((tmp_path / file).read_text() + "\n")
    assert (digest() != before) == counts


@pytest.mark.parametrize(("devices", "tp"), [(None, ["--tp", "4"]), ("", ["--tp", "4"]), ("0,1", [])])
def test_quickstart_runs_four_ranks_in_its_environment(run_script, fake_python, tmp_path, root, devices, tp):
    """In an environment that is made and installed already; a list of devices says how many ranks."""
    python, _ = fake_python
    venv = tmp_path / "venv" / "bin"
    venv.mkdir(parents=True)
    (venv / "python").symlink_to(python)
    stamp = f'source "{root}/examples/venv.sh"; installed_files'
    digest = subprocess.run(["bash", "-c", stamp], capture_output=True, text=True, check=True).stdout.strip()
    (venv.parent / ".atb-models-installed-server").write_text(f"{digest} {root} torch==2.13.0\n")
    users = {"VENV": str(venv.parent), "PYTHON": "unused"}
    users |= {} if devices is None else {"ASCEND_RT_VISIBLE_DEVICES": devices}
    words, _ = run_script("--stream", script="examples/quickstart.sh", **users)
    assert words == [*DEFAULT_WORDS, "--device", "cpu", *tp, "--stream"]
