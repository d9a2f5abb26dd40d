"""The proxies' files of examples/service, run in front of a real server where the proxies are installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.launcher.processes import any_port
from tests.server.raw import PATH, Stream, at_rest, completion, head, values, wait_for
from tests.server.running import Running

LONG = 8000  # tokens: far more than any engine computes before the test has done its part
PLAIN = {
    "nginx": ("listen 443 ssl;", "listen 127.0.0.1:{port};"),
    "caddy": ("chat.example.org {", "http://:{port} {{"),
}
NGINX = """pid {folder}/pid; master_process off; error_log stderr; daemon off; events {{}}
http {{ access_log off; {temporary}
{site}}}
"""
TEMPORARY = " ".join(
    f"{kind}_temp_path {{folder}}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)


def _nginx(site: str, folder: Path) -> list[str]:
    site = "\n".join(line for line in site.splitlines() if "ssl_certificate" not in line)
    whole = NGINX.format(folder=folder, temporary=TEMPORARY.format(folder=folder), site=site)
    (folder / "nginx.conf").write_text(whole)
    return ["nginx", "-p", str(folder), "-e", "stderr", "-c", "nginx.conf"]


def _caddy(site: str, folder: Path) -> list[str]:
    (folder / "Caddyfile").write_text("{\n\tadmin off\n\tauto_https off\n}\n" + site)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


@contextmanager
def _running(command: list[str], port: int, folder: Path) -> Iterator[tuple[str, int]]:
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={"PATH": "/usr/sbin:/usr/bin", "HOME": str(folder)}
        )
    try:
        address = ("127.0.0.1", port)
        wait_for(lambda: process.poll() is not None or _ready(address))
        assert process.poll() is None, (folder / "log").read_text()
        yield address
    finally:
        process.terminate()
        process.wait(10)


def _ready(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=30):
            return True
    except ConnectionRefusedError:
        return False


def _post(address: tuple[str, int], body: bytes) -> int:
    connection = HTTPConnection(*address, timeout=30)
    try:
        connection.request("POST", PATH, body, {"Content-Type": "application/json"})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.fixture(params=["nginx", "caddy"])
def proxy(request: pytest.FixtureRequest, server: Running, root: Path, tmp_path: Path) -> Iterator[tuple[str, int]]:
    program, port = request.param, any_port()
    where = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin")
    if where is None:
        pytest.skip(f"needs {program}")
    file, write = {"nginx": ("nginx.conf", _nginx), "caddy": ("Caddyfile", _caddy)}[program]
    before, after = PLAIN[program]
    site = (root / "examples/service" / file).read_text()
    assert before in site
    site = site.replace(before, after.format(port=port)).replace("127.0.0.1:6006", f"127.0.0.1:{server.address[1]}")
    command: Callable[[str, Path], list[str]] = write
    with _running([where, *command(site, tmp_path)[1:]], port, tmp_path) as address:
        yield address


def test_a_proxy_hands_on_events_and_the_client_s_leaving(proxy: tuple[str, int], server: Running) -> None:
    aborted = values(server)["request_aborted_total"]
    with Stream(proxy, completion([1, 2], LONG)).begin():
        assert values(server)["num_requests_running"] == 1, "the first event came with the last"
    wait_for(lambda: at_rest(server), 5)
    assert values(server)["request_aborted_total"] == aborted + 1
    with Stream(proxy, completion([1, 2], 3)).begin() as stream:
        assert b"data: [DONE]" in stream.rest()


def test_a_proxy_refuses_bodies_that_the_service_would(proxy: tuple[str, int]) -> None:
    with socket.create_connection(proxy, timeout=30) as connection:
        connection.sendall(head(PATH, (8 << 20) + 1))
        assert b" 413 " in connection.makefile("rb").readline()
    assert _post(proxy, b" " * (4 << 20)) == 400
