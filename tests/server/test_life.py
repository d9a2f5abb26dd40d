"""From the first line of the log to the exit status: loading, ending, and what dies on the way."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest

from atb_models import LLM
from atb_models.errors import CheckpointError
from atb_models.models.weights import loader
from atb_models.ranks.lifetime import is_dead
from atb_models.server import engine_process
from atb_models.server.channel import Channel
from atb_models.server.engine_process import _Teller
from tests.launcher.processes import Program, any_port
from tests.server.raw import PATH, Stream, children, completion, stopped, values, wait_for
from tests.server.running import Running, running

LONG = 8000  # tokens: far more than any engine computes before the test has done its part
SILENCE_S = 7.0
IDLE_SHARE = 0.02  # of a core


def _all_end(pids: list[int], timeout_s: float = 10.0) -> None:
    wait_for(lambda: all(map(is_dead, pids)), timeout_s)


def _health(address: tuple[str, int]) -> tuple[int, str]:
    connection = HTTPConnection(*address, timeout=20)
    connection.request("GET", "/health")
    response = connection.getresponse()
    return response.status, json.loads(response.read())["detail"]


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_server_that_loads_says_so_and_can_be_stopped(number: int, status: int) -> None:
    with running("--tp", "2", wait=False) as server:
        wait_for(lambda: server.url)
        code, detail = _health(server.address)
        assert code == 503 and "the model is loading" in detail
        assert server.request("GET", "/ready")[0].status == 503
        assert "is loading" in server.json(PATH, completion([5], 1), status=503)["error"]["message"]
        pids = wait_for(lambda: children(server.process.pid))
        assert server.end(number, 5) == status
        _all_end(pids)
        assert "Traceback" not in server.log


def test_how_far_the_weights_are_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(engine_process, "LOG_EVERY_S", 0.0)
    caplog.set_level(logging.INFO)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        loader.listeners.append(_Teller(Channel(theirs)).loaded)
        try:
            LLM().close()
        finally:
            loader.listeners.pop()
        details = [message.detail for message in Channel(ours).take(0)]
    assert details[-1] == "weights 100 % of 0.0 GB" and len(details) > 5
    assert "weights: 100 % of 0.0 GB are loaded" in caplog.messages
    percents = [int(detail.split()[1]) for detail in details]
    assert percents == sorted(set(percents))


def test_sigterm_lets_what_runs_come_to_its_end() -> None:
    """Though all processes get it, as a supervisor may send it."""
    with running("--tp", "2") as server, Stream(server, completion([1, 2], 400)).begin() as stream:
        pids = children(server.process.pid)
        assert len(pids) == 2
        with stopped(server):
            for pid in (*pids, server.process.pid):
                os.kill(pid, signal.SIGTERM)
            wait_for(lambda: _health(server.address)[0] == 503)
            error = server.json(PATH, completion([5], 1), status=503)["error"]
            assert "takes no new requests" in error["message"]
        assert b"data: [DONE]" in stream.rest()
        assert server.process.wait(10) == 0
        _all_end(pids)


def test_a_second_signal_ends_at_once() -> None:
    with running() as server, Stream(server, completion([1, 2], LONG)).begin() as stream:
        pids = children(server.process.pid)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "a second signal ends at once" in server.log)
        assert server.process.poll() is None
        started = time.monotonic()
        assert server.end(signal.SIGTERM, 10) == 128 + signal.SIGTERM
        assert time.monotonic() - started < 3
        assert b"[DONE]" not in stream.rest()
        _all_end(pids)
        assert "Traceback" not in server.log


def test_what_does_not_end_in_time_is_told_so() -> None:
    with running("--drain_timeout", "0.3") as server, Stream(server, completion([1, 2], LONG)).begin() as stream:
        server.process.send_signal(signal.SIGTERM)
        rest = stream.rest().decode()
        assert '"message":"the service has ended"' in rest and "[DONE]" not in rest
        assert server.process.wait(10) == 0


def test_a_killed_rank_ends_the_service_with_a_clear_error() -> None:
    with running("--tp", "2") as server, Stream(server, completion([1, 2], LONG)).begin() as stream:
        engine, rank = children(server.process.pid)
        os.kill(rank, signal.SIGKILL)
        rest = stream.rest().decode()
        assert "rank 1" in rest and "SIGKILL" in rest and "[DONE]" not in rest and "/" not in rest.split("error")[1]
        code, detail = _health(server.address)
        assert code == 503 and "rank 1" in detail
        assert server.process.wait(10) == 1
        _all_end([engine, rank])
        assert "atb-models: error: rank 1" in wait_for(lambda: server.log)


def test_with_restart_the_ranks_come_back() -> None:
    with running("--tp", "2", "--restart") as server:
        with Stream(server, completion([1, 2], LONG)).begin() as stream:
            os.kill(children(server.process.pid)[1], signal.SIGKILL)
            assert b"rank 1" in stream.rest()
        assert _health(server.address)[0] == 503
        wait_for(lambda: _health(server.address)[0] == 200)
        assert server.json(PATH, completion([1, 2], 3))["usage"]["completion_tokens"] == 3
        assert values(server)["generation_tokens_total"] == 3
        assert server.end() == 0


def test_nothing_outlives_a_killed_front() -> None:
    with running("--tp", "2") as server, Stream(server, completion([1, 2], LONG)).begin():
        pids = children(server.process.pid)
        assert len(pids) == 2
        server.process.kill()
        _all_end(pids, 5)
        server.process.wait()


def test_a_port_that_is_taken_is_a_mistake_seen_before_loading() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        ran = subprocess.run(
            [sys.executable, "-m", "atb_models", "serve", "--port", port],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert ran.returncode == 2
    assert ran.stderr.endswith(
        f"atb-models: error: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another --port\n"
    )
    assert "weights" not in ran.stderr and "Traceback" not in ran.stderr


def test_a_model_that_cannot_be_loaded_is_said_once(tmp_path: Path, demo: Path) -> None:
    for file in demo.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    ran = subprocess.run(
        [sys.executable, "-m", "atb_models", "serve", "--port", "0", "--model_path", str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == CheckpointError.exit_status and ran.stderr.count("atb-models: error: ") == 1
    assert str(tmp_path) in ran.stderr and "Traceback" not in ran.stderr


def test_under_torchrun_it_serves_drains_and_ends(tmp_path: Path, root: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(any_port()),
        "-m", "atb_models", "serve", "--port", "0",
    ]  # fmt: skip
    with Program(command, tmp_path, PYTHONPATH=str(root)) as program:
        program.wait_until(lambda: " ready: " in program.err)
        assert "2 ranks" in program.err
        listening = re.search(r"listening on http://127.0.0.1:(\d+)", program.err)
        assert listening is not None
        with Stream(("127.0.0.1", int(listening[1])), completion([1, 2], 300)).begin() as stream:
            program.process.send_signal(signal.SIGTERM)
            assert b"data: [DONE]" in stream.rest()
        program.finish(20)


def test_restart_is_torchrun_s_own_matter_there() -> None:
    environ = {**os.environ, "TORCHELASTIC_RUN_ID": "none"}
    ran = subprocess.run(
        [sys.executable, "-m", "atb_models", "serve", "--port", "0", "--restart"],
        capture_output=True, text=True, timeout=60, check=False, env=environ,
    )  # fmt: skip
    assert ran.returncode == 2 and "--max-restarts" in ran.stderr


def test_silence_costs_nothing_and_breaks_nothing(server4: Running, short_timeout: dict[str, str]) -> None:
    """7 s without a request at 4 ranks, and between 2 hosts, where process groups would give up after 4 s of waiting.

    The hosts are two processes that are told to be alone on theirs, so that they talk through gloo.
    """
    world = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    world["MASTER_PORT"] = str(any_port())
    with (
        running(env={**short_timeout, **world, "RANK": "0"}, wait=False) as first,
        running(env={**short_timeout, **world, "RANK": "1"}, wait=False) as second,
    ):
        first.wait_until_ready()
        for one in (server4, first):
            one.json(PATH, completion([1, 2], 3))
        time.sleep(1)
        pids = [one.process.pid for one in (server4, first, second)]
        pids += [child for pid in pids for child in children(pid)]
        assert len(pids) == 5 + 2 + 1
        before, started = [_cpu_s(pids[:1] + pids[3:7]), _cpu_s(pids)], time.monotonic()
        time.sleep(SILENCE_S)
        after = [_cpu_s(pids[:1] + pids[3:7]), _cpu_s(pids)]
        shares = [(b - a) / (time.monotonic() - started) for a, b in zip(before, after, strict=True)]
        assert shares[0] < IDLE_SHARE and shares[1] < 2 * IDLE_SHARE, f"shares of a core: {shares}"
        for one in (server4, first):
            assert one.json(PATH, completion([1, 2], 3))["usage"]["completion_tokens"] == 3
        assert first.end() == 0 and second.process.wait(10) == 0


def _cpu_s(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
