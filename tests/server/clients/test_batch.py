"""`atb-models batch`: answers, and what is left of them when it is ended, torn, or out of room."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atb_models import LLM, SamplingParams, cli
from atb_models.clients import backends
from atb_models.clients.batch_file import Answers
from atb_models.errors import AtbError, ConfigError
from tests.server.raw import children, wait_for
from tests.server.running import ROOT, Running

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
BATCH = [sys.executable, "-m", "atb_models", "batch"]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


def line(name: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    fields = {CHAT: {"messages": [{"role": "user", "content": f"What is {name}?"}]}, COMPLETION: {"prompt": name}}[url]
    body = {"temperature": 0, "max_tokens": 8, **fields, **body}
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines), "utf-8")
    return path


def read(path: Path) -> dict[str, Any]:
    """The answers by custom_id; every line must be whole and no id there twice."""
    data = path.read_text("utf-8")
    assert data == "" or data.endswith("\n")
    answers = [json.loads(one) for one in data.splitlines()]
    assert len({one["id"] for one in answers}) == len({one["custom_id"] for one in answers}) == len(answers)
    assert all(set(one) == {"id", "custom_id", "response", "error"} for one in answers)
    return {one["custom_id"]: one["response"] for one in answers}


@pytest.fixture(params=["model", "server"])
def where(request: pytest.FixtureRequest) -> list[str]:
    return ["--url", request.getfixturevalue("server").url] if request.param == "server" else []


def test_answers_are_those_of_the_model(
    llm: LLM, where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line(f"{i} + 你", CHAT if i % 2 else COMPLETION) for i in range(20)] + [line("bad", nonsense=1)]
    source, target = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    assert cli.main(["batch", str(source), str(target), *where]) == 1
    assert "20 of 21 requests answered" in (err := capsys.readouterr().err)
    assert "1 request refused with status 422" in err
    answers, params = read(target), SamplingParams(max_tokens=8)
    chats = llm.chat([one["body"]["messages"] for one in lines[1:20:2]], params)
    texts = llm.generate([one["body"]["prompt"] for one in lines[0:20:2]], params)
    for one, output in zip(lines[1:20:2], chats, strict=True):
        assert answers[one["custom_id"]]["body"]["choices"][0]["message"]["content"] == output.text
    for one, output in zip(lines[0:20:2], texts, strict=True):
        assert answers[one["custom_id"]]["body"]["choices"][0]["text"] == output.text
    assert answers["bad"]["status_code"] == 422 and answers["bad"]["body"]["error"]["param"] == "nonsense"
    assert {answer["status_code"] for name, answer in answers.items() if name != "bad"} == {200}


def test_a_torn_batch_goes_on(server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.jsonl", [line(str(i)) for i in range(6)])
    target, url = tmp_path / "out.jsonl", ["--url", server.url]
    assert cli.main(["batch", str(source), str(target), *url]) == 0
    whole = target.read_bytes().splitlines(keepends=True)
    target.write_bytes(b"".join(whole[:3]) + whole[3][:40])
    assert cli.main(["batch", str(source), str(target), *url]) == 0
    assert "has 3 of 6 answers" in capsys.readouterr().err
    assert target.read_bytes().startswith(b"".join(whole[:3])) and len(read(target)) == 6
    before = target.read_bytes()
    assert cli.main(["batch", str(source), str(target), "--url", "http://127.0.0.1:1"]) == 0, "nothing is left to ask"
    assert target.read_bytes() == before


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """Two short requests, and more long ones than run at once."""
    long = [line(f"long {i}", COMPLETION, max_tokens=3000, ignore_eos=True) for i in range(6)]
    return write(tmp_path / "in.jsonl", [line("1"), line("2"), *long])


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_batch_that_is_ended_leaves_whole_lines_and_no_process(
    slow: Path, number: int, status: int, tmp_path: Path
) -> None:
    target = tmp_path / "out.jsonl"
    process = subprocess.Popen([*BATCH, str(slow), str(target)], env=ENV, stderr=subprocess.DEVNULL)
    wait_for(lambda: target.exists() and target.read_bytes().count(b"\n") == 2, 60)
    engines = children(process.pid)
    assert engines and cli.main(["batch", str(slow), str(target)]) == 2, "another batch is writing"
    process.send_signal(number)
    assert process.wait(30) == status
    assert set(read(target)) == {"1", "2"}
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in engines))


@pytest.mark.parametrize("where", ["server"], indirect=True)
def test_a_full_disk(where: list[str], tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", [line(str(i)) for i in range(8)]), tmp_path / "out.jsonl"
    room = 1500  # bytes: a few answers, and a part of the next

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

    command = [*BATCH, str(source), str(target), *where]
    done = subprocess.run(command, env=ENV, preexec_fn=limit, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and f"{target} cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert 1 <= len(read(target)) < 8 and target.stat().st_size <= room
    assert subprocess.run(command, env=ENV, capture_output=True, timeout=60).returncode == 0
    assert len(read(target)) == 8


def test_a_busy_server_is_asked_again(closed: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "PAUSES_S", (0.01,) * 50)
    monkeypatch.setattr(backends, "MAX_PAUSE_S", 0.05)
    source, target = write(tmp_path / "in.jsonl", [line(str(i)) for i in range(12)]), tmp_path / "out.jsonl"
    assert cli.main(["batch", str(source), str(target), "--url", closed.url, "--api_key", closed.key]) == 0
    assert len(read(target)) == 12 and " 429 " in closed.log


def test_what_may_be_answered_later_is_not_written(
    closed: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backends, "PAUSES_S", ())
    lines = [line(str(i), COMPLETION, max_tokens=100, ignore_eos=True) for i in range(6)]
    source, target = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    command = ["batch", str(source), str(target), "--url", closed.url, "--api_key"]
    assert cli.main([*command, "bad"]) == 1 and "status 401" in capsys.readouterr().err
    assert cli.main([*command, closed.key]) == 1
    assert "requests without an answer, the last for status 429" in capsys.readouterr().err
    assert {answer["status_code"] for answer in read(target).values()} == {200}
    assert cli.main([*command, closed.key, "--max_batch_size", "1"]) == 0


def test_a_model_that_cannot_be_loaded(tmp_path: Path, demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target, model = write(tmp_path / "in.jsonl", [line("1")]), tmp_path / "out.jsonl", tmp_path / "model"
    shutil.copytree(demo, model)
    (weights,) = model.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert cli.main(["batch", str(source), str(target), "--model_path", str(model), "--model_name", "x"]) == 1
    assert f"atb-models: error: {weights}" in capsys.readouterr().err and read(target) == {}


GOOD = line("a")


@pytest.mark.parametrize(
    "lines, said",
    [
        ([], "is empty"),
        (["{"], "line 1 is not valid JSON"),
        ([GOOD, "3"], "line 2 must be a JSON object"),
        ([GOOD, GOOD], "lines 1 and 2 have the same custom_id, 'a'"),
        ([GOOD | {"custom_id": 7}], "line 1 has no custom_id"),
        ([GOOD | {"method": "GET"}], "method must be 'POST', not 'GET'"),
        ([GOOD | {"url": "/v1/embeddings"}], "url must be one of"),
        ([GOOD | {"body": []}], "has no body"),
        ([GOOD | {"bodi": {}}], "bodi is not known"),
        ([line("a", stream=True)], "stream has no meaning"),
        ([line("a", model="other")], "--model_name other gives it that name"),
    ],
)
def test_mistakes_in_the_input(lines: list[Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.jsonl", lines)
    assert cli.main(["batch", str(source), str(tmp_path / "out.jsonl")]) == 2
    (error,) = [one for one in capsys.readouterr().err.splitlines() if "error" in one]
    assert said in error


def test_mistakes_in_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.jsonl", [GOOD])
    text = write(tmp_path / "text", ["hello"])
    for target, said in (
        (source, "is the input and the output"),
        (text, "line 1 is no answer of a batch"),
        (Path("/dev/full"), "is no file"),
        (tmp_path / "nowhere" / "x", "cannot be written: No such file"),
        (tmp_path, "Is a directory"),
    ):
        assert cli.main(["batch", str(source), str(target)]) == 2
        assert said in capsys.readouterr().err
    assert text.read_text() == "hello\n"
    assert cli.main(["batch", str(tmp_path / "none"), str(tmp_path / "out")]) == 2


def test_a_write_that_fails_half_way_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, real = tmp_path / "out.jsonl", os.write
    with Answers(target) as answers:
        answers.add("a", 200, {"text": "\ud83d"})

        def short(file: int, data: bytes) -> int:
            if len(data) < 50:
                raise OSError(28, "No space left on device")
            return real(file, data[:-10])

        monkeypatch.setattr(os, "write", short)
        with pytest.raises(AtbError, match="No space left on device; the answers in it are complete"):
            answers.add("b", 200, "x" * 100)
    assert read(target) == {"a": {"status_code": 200, "request_id": read_id(target), "body": {"text": "\ud83d"}}}
    with Answers(target) as again, pytest.raises(ConfigError, match="being written by another"):
        assert again.statuses == {"a": 200}
        Answers(target)


def read_id(path: Path) -> str:
    answer = json.loads(path.read_text().splitlines()[0])
    assert answer["id"].startswith("batch_req_")
    return str(answer["response"]["request_id"])
