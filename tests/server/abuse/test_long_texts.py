"""Long texts: refused by their bytes, tokenized apart from short ones, ended with their client; the front stays small.

On the embedded checkpoint a long text is refused at once. The second server's tokenizer has a token that takes any
number of blanks with it, so that bytes say nothing: there every text must be tokenized.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.raw import at_rest, children, completion, head, wait_for
from tests.server.running import Running, running

FRONT_KIB = 300 << 10
WAIT_S = 1.0  # that a short request may take meanwhile
LONG = "One two three, and so on. " * 200_000  # 5.2 MB
MIDDLE = "One two three, and so on. " * 4_000  # 104 kB
PATHS: dict[str, Callable[[str], dict[str, Any]]] = {
    "/tokenize": lambda text: {"prompt": text},
    "/v1/tokenizer": lambda text: {"inputs": text},
    "/v1/completions": lambda text: {"prompt": text, "max_tokens": 1},
    "/v1/chat/completions": lambda text: {"messages": [{"role": "user", "content": text}]},
    "/generate": lambda text: {"inputs": text},
    "/generate_stream": lambda text: {"inputs": text},
    "/infer": lambda text: {"inputs": text},
    "/v2/models/m/generate": lambda text: {"text_input": text},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> Path:
    """The embedded checkpoint with a token that takes blanks with it."""
    target = tmp_path_factory.mktemp("models") / "m"
    shutil.copytree(demo, target)
    content = json.loads((target / "tokenizer.json").read_text("utf-8"))
    for token in content["added_tokens"]:
        token["rstrip"] = True
    (target / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    settings = json.loads((target / "tokenizer_config.json").read_text("utf-8"))
    for token in settings.get("added_tokens_decoder", {}).values():
        token["rstrip"] = True
    (target / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return target


@pytest.fixture(params=["bounded", "unbounded"])
def busy(request: pytest.FixtureRequest, folder: Path) -> Iterator[Running]:
    flags = ("--model_path", str(folder)) if request.param == "unbounded" else ("--model_name", "m")
    with running(*flags) as server:
        server.json("/tokenize", {"prompt": "warm up"})
        yield server
        assert "Traceback" not in server.log
        assert server.end() == 0


def front_kib(server: Running) -> int:
    """The largest memory that the front has had."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def at_work(server: Running) -> float:
    """Share of a core that the engine and the tokenizers' processes use, over half a second."""
    before = {pid: cpu_s(pid) for pid in children(server.process.pid)}
    time.sleep(0.5)
    return sum(max(0.0, cpu_s(pid) - seconds) for pid, seconds in before.items()) / 0.5


def cpu_s(pid: int) -> float:
    """Seconds of a processor that a process has used; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def leave_after(server: Running, path: str, body: Any, seconds: float) -> None:
    data = json.dumps(body).encode()
    with socket.create_connection(server.address, timeout=30) as client:
        client.sendall(head(path, len(data)) + data)
        time.sleep(seconds)


@pytest.mark.parametrize("path", ["/tokenize", "/v1/chat/completions"])
def test_eight_clients_that_send_5_mb_and_leave(busy: Running, path: str) -> None:
    slowest = 0.0
    bodies = [PATHS[path](LONG)] * 8
    clients = [threading.Thread(target=leave_after, args=(busy, path, body, 0.5)) for body in bodies]
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients):
        started = time.monotonic()
        assert busy.json("/tokenize", {"prompt": "Who is the CEO of Google?"})["count"] == 8
        slowest = max(slowest, time.monotonic() - started)
        time.sleep(0.05)
    assert slowest < WAIT_S
    assert front_kib(busy) < FRONT_KIB
    wait_for(lambda: at_work(busy) < 0.3, 5)  # what they asked for has ended
    started = time.monotonic()
    assert busy.json("/v1/completions", completion([5, 6], 3) | {"model": "m"})["usage"]["completion_tokens"] == 3
    assert time.monotonic() - started < WAIT_S and at_rest(busy)


@pytest.mark.parametrize("path", PATHS)
def test_a_text_that_cannot_fit_is_refused_at_once(server: Running, path: str) -> None:
    started = time.monotonic()
    response, data = server.request("POST", path.replace("/m/", "/demo/"), PATHS[path](LONG))
    assert response.status == 400, data
    said = data.decode()
    field = {"/v1/chat/completions": "messages", "/v2/models/m/generate": "text_input"}.get(path)
    assert (field or next(iter(PATHS[path]("")))) + ": the text has " in said, said
    assert "bytes, which are at least" in said and "but at most 8192 fit" in said
    assert time.monotonic() - started < WAIT_S
    assert front_kib(server) < FRONT_KIB


def test_one_that_only_looks_long_is_answered(server: Running) -> None:
    """A cut prompt may be of any length; a long text of long tokens fits."""
    body = {"inputs": MIDDLE, "parameters": {"truncate": 5, "details": True, "max_new_tokens": 1}}
    assert server.json("/generate", body)["details"]["prompt_tokens"] == 5
    fits = "你好" * 3000
    assert server.json("/tokenize", {"prompt": fits})["count"] <= 8192


def test_long_texts_are_tokenized_as_short_ones(folder: Path) -> None:
    """In threads and in processes alike; the process ends when it has nothing to do, and is started again."""
    with running("--model_path", str(folder)) as server:
        for text in (MIDDLE[:10_000], MIDDLE, MIDDLE * 6):
            one = server.json("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
            assert server.json("/detokenize", {"tokens": one}) == {"prompt": text}
        chat = server.json("/tokenize", {"messages": [{"role": "user", "content": MIDDLE}]})
        assert chat["count"] > len(MIDDLE) / 10
        error = server.json("/tokenize", {"messages": [{"role": "wizard", "content": MIDDLE}]}, status=400)["error"]
        assert "wizard" in error
        assert "Traceback" not in server.log


def test_a_worker_that_dies_is_started_again(folder: Path) -> None:
    with running("--model_path", str(folder)) as server:
        engine = children(server.process.pid)
        server.json("/tokenize", {"prompt": MIDDLE})
        (worker,) = set(children(server.process.pid)) - set(engine)
        os.kill(worker, signal.SIGKILL)
        server.json("/tokenize", {"prompt": MIDDLE})
        (other,) = set(children(server.process.pid)) - set(engine)
        assert other != worker
        failing = threading.Thread(target=leave_after, args=(server, "/tokenize", {"prompt": LONG}, 10))
        failing.start()
        (third,) = wait_for(lambda: set(children(server.process.pid)) - {*engine, other})
        os.kill(third, signal.SIGKILL)
        failing.join()
        wait_for(lambda: " 500 " in server.log)
        assert "the process ended" in server.log and "Traceback" not in server.log
        server.json("/tokenize", {"prompt": MIDDLE})


def test_very_long_lists_of_ids(server: Running) -> None:
    body = {"prompt": [5] * 500_000, "echo": True, "max_tokens": 0}
    error = server.json("/v1/completions", body, status=400)["error"]
    assert error["message"].startswith("prompt: the prompt has 500000 tokens, but at most 8191 fit")
    started = time.monotonic()
    text = server.json("/detokenize", {"tokens": [1850, 277] * 100_000})["prompt"]
    assert text.startswith("Who is") and time.monotonic() - started < 30


def test_very_many_objects(server: Running) -> None:
    body = {"messages": [{"role": "user", "content": "a"}] * 100_000}
    assert "more than 16384 JSON objects" in server.json("/v1/chat/completions", body, status=422)["error"]["message"]
    code = 'x = {"a": [{"b": 1}]}; ' * 20_000  # a text may have any number of braces
    assert "bytes, which are" in server.json("/tokenize", {"prompt": code}, status=400)["error"]
