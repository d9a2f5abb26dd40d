"""`atb-models chat`, in a pipe and in a terminal, with a model and with a server."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from atb_models import LLM, SamplingParams, cli
from tests.server.raw import at_rest, wait_for
from tests.server.running import ROOT, Running

CHAT = [sys.executable, "-m", "atb_models", "chat"]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
FRANCE, GREETING = "What is the capital of France?", "你好"
ENDLESS = ["--config_overrides", '{"eos_token_id": 2495}']  # of a model that never ends an answer by itself
LONG = ["--max_tokens", "6000"]


def piped(lines: str, *flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CHAT, *flags], input=lines, capture_output=True, text=True, env=ENV | environ, timeout=120, encoding="utf-8"
    )


def expected(llm: LLM, *texts: str, system: str | None = None) -> list[str]:
    """The answers to these turns of one conversation."""
    turns = [] if system is None else [{"role": "system", "content": system}]
    answers = []
    for text in texts:
        turns.append({"role": "user", "content": text})
        answer = llm.chat([turns], SamplingParams(max_tokens=12))[0].text
        turns.append({"role": "assistant", "content": answer})
        answers.append(answer.strip())
    return answers


@pytest.fixture(params=["model", "server"])
def where(request: pytest.FixtureRequest) -> list[str]:
    return ["--url", request.getfixturevalue("server").url + "/v1/"] if request.param == "server" else []


def test_piped_turns_make_a_conversation(llm: LLM, where: list[str]) -> None:
    script = f"{FRANCE}\n{GREETING}\n\n/reset\n{GREETING}\n/system Be brief.\n{FRANCE}\n/exit\n{FRANCE}\n"
    done = piped(script, "--max_tokens", "12", *where)
    answers = [*expected(llm, FRANCE, GREETING), *expected(llm, GREETING), *expected(llm, FRANCE, system="Be brief.")]
    assert done.stdout.splitlines() == answers and done.returncode == 0, done.stderr


def test_flags_choose_tokens_as_parameters_do(
    llm: LLM, where: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each changes the answer, a model's as a server's; min_p 1 leaves the likeliest token alone at any temperature."""

    turns = [[{"role": "user", "content": FRANCE}]]
    hot = {"temperature": 4.0, "seed": 3}
    plain, warm, repeated = (
        llm.chat(turns, SamplingParams(max_tokens=12, **fields))[0].text.strip()
        for fields in ({}, hot, hot | {"presence_penalty": -2.0, "frequency_penalty": -2.0})
    )
    word = plain.split()[2]
    cut = plain[: plain.index(word)].strip()
    assert len({plain, warm, repeated, cut}) == 4
    for flags, wanted in (
        (["--stop", "no such text", word], cut),
        (["--temperature", "50", "--min_p", "1"], plain),
        (["--temperature", "4", "--seed", "3", "--presence_penalty", "-2", "--frequency_penalty", "-2"], repeated),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(FRANCE))
        assert cli.main(["chat", "--max_tokens", "12", *flags, *where]) == 0
        assert capsys.readouterr().out.strip() == wanted, flags


def test_a_mistake_in_a_pipe_ends_it(server: Running) -> None:
    done = piped(f"/nonsense\n{FRANCE}\n", "--url", server.url)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "atb-models: error: /nonsense is no command; /help lists them\n"
    done = piped("word " * 9000, "--url", server.url)
    assert done.returncode == 1 and "status 400" in done.stderr and "8192" in done.stderr


@pytest.mark.parametrize("encoding", ["", "utf-8", "utf8:strict"])
def test_the_mark_of_a_file_is_no_part_of_the_first_turn(encoding: str) -> None:
    """And a line may end as Windows ends it; here both are commands, which need no server."""
    lines = "\ufeff/reset\r\n/walk\r\n"
    done = piped(lines, "--url", "http://127.0.0.1:1", "--model", "m", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (2, "atb-models: error: /walk is no command; /help lists them\n")


def test_bytes_that_are_no_text(server: Running) -> None:
    done = subprocess.run([*CHAT, "--url", server.url], input=b"\xff\xfe hi\n", capture_output=True, env=ENV)
    assert done.returncode == 0 and done.stdout.strip()


class Terminal:
    """The program in a terminal of 30 columns; `read` gives what it has shown once that contains the pattern."""

    def __init__(self, fd: int, process: subprocess.Popen[bytes]) -> None:
        self._fd, self.process, self._shown = fd, process, ""

    def read(self, pattern: str, timeout_s: float = 60.0) -> str:
        end = time.monotonic() + timeout_s
        while not (match := re.search(pattern, self._shown)):
            assert time.monotonic() < end, self._shown
            if select.select([self._fd], [], [], 0.1)[0]:
                self._shown += os.read(self._fd, 1 << 16).decode("utf-8", "replace")
        text, self._shown = self._shown[: match.end()], self._shown[match.end() :]
        return text.replace("\r", "")

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())


@contextmanager
def terminal(*flags: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "cols", "30", "rows", "10"], stdin=theirs, check=True)
    env = ENV | {"TERM": "xterm", "LC_ALL": "C.UTF-8"}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *flags], stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
    )
    os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


# A terminal is that of the session that it controls: only then do its keys send signals.
RUN = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from atb_models.cli import main
sys.exit(main(["chat", *sys.argv[1:]]))
"""


def test_a_terminal(llm: LLM, server: Running) -> None:
    first, second = expected(llm, FRANCE, GREETING)
    with terminal("--max_tokens", "12", "--url", server.url) as screen:
        assert "/help lists" in screen.read("> ")
        screen.type(f"{FRANCE}\r")
        screen.read(re.escape(first[-10:]) + r"\r\n\[\d+ \+ \d+ tokens, [\d.]+ tokens/s\]\r\n> ")
        screen.type(f"{GREETING}x\x7f\r")
        screen.read(re.escape(second))
        screen.read("> ")
        screen.type("/system\r")
        assert "there is no system text" in screen.read("text\r\n> ")
        screen.type("/nonsense\r")
        assert "is no command" in screen.read("them\r\n> ")
        screen.type("/reset\r")
        screen.read("> ")
        screen.type("\x1b[A\x1b[A\x1b[A\x1b[A\x1b[A\r")
        screen.read(re.escape(first[-10:]))
        screen.read("> ")
        screen.type("\x04")
        assert screen.process.wait(30) == 0


@pytest.mark.parametrize("remote", [False, True], ids=["model", "server"])
def test_ctrl_c_stops_an_answer_and_no_more(closed: Running, remote: bool) -> None:
    with terminal(*LONG, *(["--url", closed.url, "--api_key", closed.key] if remote else ENDLESS)) as screen:
        screen.read("> ")
        screen.type("Tell a story\r")
        screen.read(r"story\r\n[^\r]{20}")
        screen.type("\x03")
        screen.read(r"stopped\]\r\n> ")
        wait_for(lambda: at_rest(closed))
        screen.type("half a line")
        screen.read("half a line")
        time.sleep(0.2)  # a signal that comes between readline's echo and its wait is noticed at the next key only
        screen.type("\x03")
        screen.read(r"Ctrl-D or /exit ends\r\n> ")
        screen.type("/reset\rTell a story\r")
        screen.read(r"story\r\n[^\r]{20}")
        screen.type("\x03")
        screen.read(r"stopped\]\r\n> ")
        screen.type("/exit\r")
        assert screen.process.wait(30) == 0


def test_ctrl_c_in_a_pipe_ends_it(closed: Running) -> None:
    process = subprocess.Popen(
        [*CHAT, "--url", closed.url, "--api_key", closed.key, *LONG],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENV,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"Tell a story\n")
    process.stdin.flush()
    assert process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"atb-models: error: interrupted\n")


class Odd(BaseHTTPRequestHandler):
    """A server with other habits: no chunks, CRLF in events, fields it was not asked for, no usage."""

    protocol_version = "HTTP/1.0"
    seen: list[tuple[str, str | None]] = []

    def do_GET(self) -> None:
        self._answer(b'{"data": [{"id": "odd"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        Odd.seen.append((self.path, self.headers["authorization"]))
        text = body["messages"][-1]["content"]
        events = [{"choices": [{"delta": {"role": "assistant"}}]}, {"choices": [{"delta": {"content": f"{text}?"}}]}]
        lines = [f"data: {json.dumps(event)}" for event in events] + ["data: 3"] * (text == "number")
        self._answer("\r\n\r\n".join([": hello", *lines, "data: [DONE]" * (text != "break"), ""]).encode())

    def _answer(self, data: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def odd() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/prefix/v1"
        server.shutdown()


def test_other_servers(odd: str) -> None:
    done = piped("one\ntwo\nbreak\nthree\n", "--url", odd, ATB_API_KEY="first,second")
    assert done.stdout == "one?\ntwo?\nbreak?\n"
    assert (done.returncode, done.stderr) == (
        1, f"atb-models: error: {odd} has ended the stream before the answer was complete\n",
    )  # fmt: skip
    done = piped("number\n", "--url", odd)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "an event that is no JSON object: 3" in done.stderr
    assert Odd.seen[0] == ("/prefix/v1/chat/completions", "Bearer first")


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--url", "127.0.0.1:6006"], "--url '127.0.0.1:6006' must be as"),
        (["--url", "http://127.0.0.1:99999"], "must be as"),
        (["--url", "http://127.0.0.1:6006", "--model_path", "/x"], "--model_path belongs to a model that is loaded"),
        (["--url", "http://127.0.0.1:6006", "--tp", "4"], "--tp belongs to a model"),
        (["--model", "x"], "--model belongs to a server and needs --url"),
        (["--load_tokenizer", "False"], "--load_tokenizer False"),
        (["--temperature", "-1"], "--temperature must be"),
        (["--min_p", "1.5"], "--min_p must be a number in [0, 1], not 1.5"),
        (["--presence_penalty", "3"], "--presence_penalty must be a number in [-2, 2], not 3.0"),
        (["--frequency_penalty", "-3"], "--frequency_penalty must be a number in [-2, 2], not -3.0"),
        (["--stop", ""], "--stop must be a string or a list of strings, none of them empty, not ['']"),
        (["--max_tokens", "0"], "--max_tokens: must be"),
        (["--nonsense"], "--nonsense"),
        (["word"], "unexpected word 'word' (--help"),
        (["--model_path", "/nowhere/model"], "/nowhere/model"),
    ],
)
def test_mistakes(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", *flags]) == 2
    assert said in capsys.readouterr().err


def test_not_under_torchrun(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["chat"]) == 2 and "without torchrun" in capsys.readouterr().err


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", "--url", "http://127.0.0.1:1"]) == 1
    assert "http://127.0.0.1:1 does not answer" in capsys.readouterr().err


def test_a_silent_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert cli.main(["chat", "--url", url, "--timeout", "0.2"]) == 1
    assert f"{url} has sent nothing for 0.2 s" in capsys.readouterr().err
