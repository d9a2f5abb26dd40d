"""Who is let in, over what, and what nobody gets to see."""

from __future__ import annotations

import hmac
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from http.client import HTTPResponse, HTTPSConnection
from io import StringIO
from pathlib import Path

import pytest

from atb_models import cli
from atb_models.engine.config import EngineConfig
from atb_models.env_report import print_report
from atb_models.errors import ConfigError
from atb_models.server.args import access, parse_args
from atb_models.server.engine_client import EngineClient
from atb_models.server.messages import Failed, Loading
from atb_models.server.middleware import RequireKey
from atb_models.server.serve import is_local, listener
from tests.server.raw import PATH, completion, wait_for
from tests.server.running import Running, running

ORIGIN = "https://chat.example"
OPEN = ("/health", "/ready")
CLOSED = ("/metrics", "/metrics-json", "/openapi.json", "/v1/models", "/info", "/v2/health/live", "/nothing")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
         "-addext", "subjectAltName=IP:127.0.0.1", "-out", files[0], "-keyout", files[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return files


@pytest.fixture(scope="module")
def closed(certificate: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with keys from both flags, others in the variable, TLS, one foreign origin, and prompts in its log."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("of-file-1\nof-file-2\n")
    flags = [
        "--api_key", "of-flag-1", "--api_key", "of-flag-2", "--api_key_file", str(file), "--cors_origin", ORIGIN,
        "--ssl_certfile", str(certificate[0]), "--ssl_keyfile", str(certificate[1]), "--log_prompts",
    ]  # fmt: skip
    with running(*flags, env={"ATB_API_KEY": "of-env-1,of-env-2"}) as server:
        yield server


@pytest.fixture
def ask(closed: Running, certificate: tuple[Path, Path]) -> Iterator[HTTPSConnection]:
    connection = HTTPSConnection(
        *closed.address, timeout=60, context=ssl.create_default_context(cafile=str(certificate[0]))
    )
    yield connection
    connection.close()


def _get(ask: HTTPSConnection, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
    ask.request(method, path, headers=headers)
    response = ask.getresponse()
    return response, response.read()


@pytest.mark.parametrize("key", [f"of-{place}-{i}" for place in ("flag", "file") for i in (1, 2)])
def test_every_key_is_good(ask: HTTPSConnection, key: str) -> None:
    assert _get(ask, "/v1/models", Authorization=f"Bearer {key}")[0].status == 200


@pytest.mark.parametrize(
    "value", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Bearer of-flag", "Bearer of-flag-1x", "Basic of-flag-1",
              "of-flag-1", "Bearer of-env-1", "Bearer of-env-2", "Bearer of-env-1,of-env-2", "Bearer \xff"],
)  # fmt: skip
def test_anything_else_is_401(ask: HTTPSConnection, value: str | None) -> None:
    response, data = _get(ask, "/v1/models", **({} if value is None else {"Authorization": value}))
    assert response.status == 401 and response.headers["www-authenticate"] == "Bearer"
    assert json.loads(data)["error"]["type"] == "authentication_error"


def test_which_paths_are_open(ask: HTTPSConnection) -> None:
    for path in OPEN:
        assert _get(ask, path)[0].status == 200
    for path in CLOSED:
        assert _get(ask, path)[0].status == 401, path
    assert _get(ask, "/", "POST")[0].status == 401
    assert _get(ask, "/")[0].status != 401, "the chat page asks for the key"


def test_no_key_is_compared_faster_than_another(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(b)
        return a == b

    monkeypatch.setattr(hmac, "compare_digest", compare)
    guard = RequireKey(None, ["one", "two", "three"])  # type: ignore[arg-type]
    assert guard._has_key({"headers": [(b"authorization", b"Bearer one")]})
    assert compared == [b"one", b"two", b"three"]


def test_pages_of_the_named_origin_may_ask_and_no_others(ask: HTTPSConnection, server: Running) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    response, _ = _get(ask, PATH, "OPTIONS", Origin=ORIGIN, **asked)
    assert response.status == 200 and response.headers["access-control-allow-origin"] == ORIGIN
    response, _ = _get(ask, PATH, "OPTIONS", Origin="https://other.example", **asked)
    assert response.status == 400 and "access-control-allow-origin" not in response.headers
    response, _ = server.request("GET", "/health", headers={"Origin": ORIGIN})
    assert not [name for name in response.headers if name.lower().startswith("access-control")]


def test_plain_http_to_a_tls_port_is_refused_quietly(closed: Running) -> None:
    with socket.create_connection(closed.address, timeout=10) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
        try:
            assert b"200 OK" not in client.recv(1000)
        except ConnectionResetError:
            pass
    assert "Traceback" not in closed.log


def test_prompts_are_logged_only_when_asked_for(ask: HTTPSConnection, closed: Running, server: Running) -> None:
    body = completion([1], 2) | {"prompt": "canary in the mine"}
    headers = {"Authorization": "Bearer of-flag-2", "Content-Type": "application/json"}
    ask.request("POST", PATH, json.dumps(body), headers)
    assert b"choices" in ask.getresponse().read()
    server.json(PATH, body)
    server.json(PATH, body | {"what": "canary"}, status=422)
    wait_for(lambda: "canary in the mine" in closed.log)
    assert "canary" not in server.log
    assert "of-flag-2" not in closed.log


def test_only_this_machine_is_served_unless_asked(server: Running) -> None:
    assert server.address[0] == "127.0.0.1" and "anybody" not in server.log
    with running("--host", "0", wait=False) as other:
        wait_for(lambda: "listening on" in other.log)
        assert "everybody who can reach this machine" in other.log


@pytest.mark.parametrize(
    "host, local",
    [("127.0.0.1", True), ("127.9", True), ("localhost", True), ("0", False), ("0.0", False), ("0.0.0.0", False)],
)
def test_every_spelling_of_all_addresses_is_seen(host: str, local: bool) -> None:
    with listener(host, 0) as sock:
        assert is_local(sock) is local


def test_without_flags_the_keys_of_the_variable_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATB_API_KEY", "one, two,")
    assert access(parse_args([])).keys == ("one", "two")
    monkeypatch.setenv("ATB_API_KEY", "")
    assert access(parse_args([])).keys == ()


def test_a_line_of_the_key_file_is_one_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\n  one \n\ntwo\n")
    assert access(parse_args(["--api_key_file", str(file)])).keys == ("one", "two")
    file.write_text("one two\n")
    with pytest.raises(ConfigError, match="without blanks"):
        access(parse_args(["--api_key_file", str(file)]))


def test_a_request_cannot_write_lines_into_the_log(server: Running) -> None:
    server.request("GET", "/x%0aATTACK")
    assert "\nATTACK" not in server.log


def test_clients_see_no_paths_of_ours() -> None:
    client = EngineClient(EngineConfig())
    client._hear(Loading("weights 5 % of 30.0 GB"))
    client._hear(Loading("/models/secret/config.json: without effect here"))
    assert client.detail == "weights 5 % of 30.0 GB"
    client._hear(Failed("/models/secret/model.safetensors cannot be read", 2))
    assert client.failure == "the engine has ended: the log of the service says why" and "/models" in client.cause
    client = EngineClient(EngineConfig())
    client._hear(Failed("internal error\nTraceback (most recent call last):", 1))
    assert "Traceback" not in (client.failure or "") and "internal" not in (client.failure or "")


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--port", "65536"], "must be a port from 0 to 65535, not '65536'"),
        (["--port", "9" * 5000], "must be a port from 0 to 65535, not '999"),
        (["--api_key", ""], "--api_key is empty"),
        (["--api_key", "with blank"], "printable ASCII"),
        (["--api_key", "schlüssel"], "printable ASCII"),
        (["--api_key_file", "/nowhere/keys"], "--api_key_file /nowhere/keys cannot be read"),
        (["--api_key_file", "/dev/null"], "holds no key"),
        (["--ssl_certfile", "/nowhere.pem"], "go together"),
        (["--ssl_certfile", "/nowhere.pem", "--ssl_keyfile", "/dev/null"], "no such file"),
        (["--ssl_certfile", "/dev/null", "--ssl_keyfile", "/dev/null"], "do not work together"),
    ],
)
def test_mistakes_in_ports_keys_and_certificates(flags: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        access(parse_args(flags))


def test_a_mistake_ends_the_command_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--port", "0", "--api_key", ""]) == 2
    assert capsys.readouterr().err == "atb-models: error: --api_key is empty; leave it out for a service without keys\n"


def test_the_report_of_the_environment_hides_the_key() -> None:
    out = StringIO()
    print_report(out, {"ATB_API_KEY": "canary"})
    assert "canary" not in out.getvalue() and "***" in out.getvalue()
