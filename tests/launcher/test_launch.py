"""What `atb_models.launch` decides before the ranks start: devices, port, threads, arguments."""

from __future__ import annotations

import os
import socket

import pytest
import tiny
import torch

from atb_models import launch
from atb_models.errors import ConfigError
from atb_models.launcher import port
from atb_models.launcher.devices import choose_devices, export_devices
from atb_models.launcher.torchrun import PortTaken
from atb_models.machine.affinity import rank_cores
from atb_models.machine.device import choose_device


@pytest.fixture
def listener():
    """A socket that listens on a free port of the advised range."""
    for number in port.PORTS:
        if port.is_free(number):
            with socket.create_server(("127.0.0.1", number)) as server:
                yield server.getsockname()[1]
                return
    pytest.fail("no free port")


@pytest.fixture
def weights(tmp_path):
    """A folder with blanks in its name and a tiny model's config.json."""
    folder = tmp_path / "my weights"
    tiny.write_checkpoint(folder)
    return str(folder)


@pytest.fixture
def start(monkeypatch, clean_environ):
    """Launch with given words; returns what the ranks would be started with."""
    monkeypatch.setattr(os, "environ", dict(os.environ))  # launch changes its own
    started = {}

    def run_ranks(count, address, master_port, argv):
        started.update(count=count, address=address, port=master_port, argv=argv, environ=dict(os.environ))
        return 0

    monkeypatch.setattr(launch, "run_ranks", run_ranks)

    def run(*argv, **environ):
        os.environ.update(environ)
        status = launch.main(argv)
        return status, started

    return run


def test_defaults_on_a_cpu(start, weights):
    status, started = start(weights, "-trust_remote_code")
    assert status == 0
    assert (started["count"], started["address"]) == (8, "127.0.0.1")
    assert started["port"] in port.PORTS
    assert started["argv"] == (weights, "-trust_remote_code")
    environ = started["environ"]
    assert environ["ASCEND_RT_VISIBLE_DEVICES"] == "0,1,2,3,4,5,6,7"
    assert environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] == "0"
    assert environ["ATB_LAUNCHER_PID"] == str(os.getpid())
    assert environ["ATB_LAUNCHER_MODEL_PATH"] == weights
    assert int(environ["OMP_NUM_THREADS"]) >= 1


def test_users_exports_are_kept(start, weights):
    free = next(number for number in reversed(port.PORTS) if port.is_free(number))
    _, started = start(
        weights, ASCEND_RT_VISIBLE_DEVICES="3,1", MASTER_PORT=str(free), OMP_NUM_THREADS="3", MASTER_ADDR="localhost",
        TORCH_DEVICE_BACKEND_AUTOLOAD="1",
    )  # fmt: skip
    assert (started["count"], started["port"], started["address"]) == (2, free, "localhost")
    environ = started["environ"]
    assert (environ["ASCEND_RT_VISIBLE_DEVICES"], environ["OMP_NUM_THREADS"]) == ("3,1", "3")
    assert environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] == "1"


@pytest.mark.parametrize("count", [1, 2, 8])
def test_tp_decides_where_no_list_does(start, weights, count):
    assert start(weights, "--tp", str(count))[1]["count"] == count


def refusal(capsys, start, *argv, **environ):
    """Status and error line of a launch that must start nothing."""
    status, started = start(*argv, **environ)
    assert not started
    error = capsys.readouterr().err.splitlines()
    return status, error[-1]


def test_users_port_that_is_taken(capsys, start, weights, listener):
    status, error = refusal(capsys, start, weights, MASTER_PORT=str(listener))
    assert status == 2
    assert error.startswith(f"atb-models: error: MASTER_PORT={listener} is taken")


def test_default_port_that_is_taken(capsys, start, weights, monkeypatch, listener):
    monkeypatch.setattr(port, "DEFAULT_PORT", listener)
    _, started = start(weights)
    assert started["port"] in port.PORTS and started["port"] != listener
    error = capsys.readouterr().err
    assert error.count("is taken") == 1
    assert f"port {listener} is taken: using {started['port']}" in error


def test_no_port_is_free(monkeypatch):
    monkeypatch.setattr(port, "is_free", lambda number: False)
    with pytest.raises(ConfigError, match="no port from 20000 to 20050 is free; export MASTER_PORT"):
        port.choose_port(None)


def test_every_port_of_the_range_is_tried(monkeypatch):
    tried = []
    monkeypatch.setattr(port, "is_free", lambda number: tried.append(number) or number == 20029)
    assert port.choose_port(None) == 20029
    assert sorted(tried) == list(range(20000, 20051))


def test_port_lost_to_another_launcher_is_replaced(monkeypatch, start, weights):
    ports = []

    def run_ranks(count, address, master_port, argv):
        ports.append(master_port)
        if len(ports) == 1:
            raise PortTaken
        return 0

    monkeypatch.setattr(launch, "run_ranks", run_ranks)
    assert start(weights)[0] == 0
    assert len(set(ports)) == 2


def test_users_port_lost_to_another_launcher_is_an_error(capsys, monkeypatch, start, weights):
    def run_ranks(*_):
        raise PortTaken

    monkeypatch.setattr(launch, "run_ranks", run_ranks)
    free = next(number for number in reversed(port.PORTS) if port.is_free(number))
    status, error = refusal(capsys, start, weights, MASTER_PORT=str(free))
    assert (status, f"MASTER_PORT={free} is taken" in error) == (2, True)


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        (["--pp", "2"], {}, "--pp 2 is refused"),
        (["--foo"], {}, "unknown flag --foo"),
        (["--max_output_length", "511", "--max_input_length", "2"], {}, "need 513 positions"),
        (["--top_p", "2"], {}, "--top_p must be"),
        (["--input_file", "/none", "--is_chat_model"], {}, "/none cannot be read"),
        (["--config_overrides", '{"hidden_act": "gelu"}'], {}, "gelu"),
        (["--device", "cuda"], {}, "device cuda"),
        ([], {"ASCEND_RT_VISIBLE_DEVICES": "0,0"}, "ASCEND_RT_VISIBLE_DEVICES='0,0' must be distinct"),
        ([], {"ASCEND_RT_VISIBLE_DEVICES": "a"}, "ASCEND_RT_VISIBLE_DEVICES='a' must be"),
        (["--tp", "4"], {"ASCEND_RT_VISIBLE_DEVICES": "0,1"}, "--tp 4 contradicts ASCEND_RT_VISIBLE_DEVICES=0,1"),
        ([], {"MASTER_PORT": "99999"}, "MASTER_PORT='99999' must be a whole number"),
        (["--tp", "9"], {}, "9 ranks cannot share 8 attention heads"),
        ([], {"MASTER_ADDR": "192.0.2.1"}, "MASTER_ADDR=192.0.2.1 is no address of this machine; several hosts are"),
        ([], {"MASTER_IP": "no-such-host.invalid"}, "MASTER_IP=no-such-host.invalid is no address of this machine"),
        ([], {"CPU_BINDING_NUM": "100000"}, "CPU_BINDING_NUM=100000 for 8 ranks needs 800000 cores"),
    ],
)
def test_mistake_is_one_line_and_starts_nothing(capsys, start, weights, argv, environ, message):
    if argv == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    status, error = refusal(capsys, start, weights, *argv, **environ)
    assert (status, message in error) == (2, True), error


def test_missing_weights_print_how_to_fetch_them(capsys, start, tmp_path):
    status, started = start(str(tmp_path / "deepseek-moe-16b-chat"))
    error = capsys.readouterr().err
    assert (status, started) == (2, {})
    assert "modelscope download --model deepseek-ai/deepseek-moe-16b-chat" in error
    assert "Traceback" not in error


def test_device_list_is_cut_to_what_exists(caplog):
    assert choose_devices(None, 2, None) == (0, 1)
    assert choose_devices(None, 16, None) == (0, 1, 2, 3, 4, 5, 6, 7)
    assert choose_devices((1, 0), 2, None) == (1, 0)


@pytest.mark.parametrize("listed", [(0, 1, 2), (0, 4)])
def test_users_list_of_more_than_exist_is_an_error(listed):
    with pytest.raises(ConfigError, match=rf"names {len(listed)} devices up to number {listed[-1]}, 2 exist"):
        choose_devices(listed, 2, None)


def test_tp_beyond_the_devices_is_an_error():
    with pytest.raises(ConfigError, match="--tp 4 needs 4 devices, 2 exist"):
        choose_devices(None, 2, 4)


def test_device_numbers_select_within_cuda_visible_devices():
    assert export_devices("cuda", (2, 0), {})["CUDA_VISIBLE_DEVICES"] == "2,0"
    assert export_devices("cuda", (1, 0), {"CUDA_VISIBLE_DEVICES": "6,7"})["CUDA_VISIBLE_DEVICES"] == "7,6"
    assert export_devices("cpu", (1, 0), {}) == {"ASCEND_RT_VISIBLE_DEVICES": "1,0"}


@pytest.fixture
def cuda(monkeypatch, clean_environ):
    """Two CUDA devices, of which CUDA_VISIBLE_DEVICES selects; the environment is a copy."""
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return 2 if visible is None else sum(name in ("0", "1") for name in visible.split(","))

    monkeypatch.setattr(torch.cuda, "device_count", device_count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device_count() > 0)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)


@pytest.mark.usefixtures("cuda")
class TestCuda:
    def test_launch_refuses_absent_devices(self, capsys, start, weights):
        status, error = refusal(capsys, start, weights, ASCEND_RT_VISIBLE_DEVICES="5,6")
        assert status == 2
        assert "ASCEND_RT_VISIBLE_DEVICES=5,6 names 2 devices up to number 6, 2 exist" in error

    def test_launch_gives_the_ranks_the_listed_devices(self, start, weights):
        environ = start(weights, ASCEND_RT_VISIBLE_DEVICES="1")[1]["environ"]
        assert (environ["ASCEND_RT_VISIBLE_DEVICES"], environ["CUDA_VISIBLE_DEVICES"]) == ("1", "1")

    def test_library_refuses_absent_devices(self):
        os.environ["ASCEND_RT_VISIBLE_DEVICES"] = "1,2"
        with pytest.raises(ConfigError, match="=1,2 names 2 devices up to number 2, 2 exist"):
            choose_device(None)
        assert "CUDA_VISIBLE_DEVICES" not in os.environ

    def test_library_shares_the_list(self):
        os.environ["ASCEND_RT_VISIBLE_DEVICES"] = " 1, 0"
        assert choose_device("cpu") == "cpu"
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
        assert choose_device(None) == "cuda"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,0"


@pytest.mark.usefixtures("clean_environ")
class TestCores:
    def test_ranks_are_bound_evenly_on_a_device(self):
        assert [rank_cores(range(10, 18), rank, 4, "npu") for rank in (0, 3)] == [[10, 11], [16, 17]]
        assert rank_cores(range(8), 0, 4, "cpu") is None
        assert rank_cores(range(2), 0, 4, "cuda") is None

    def test_bind_cpu(self, monkeypatch):
        monkeypatch.setenv("BIND_CPU", "1")
        assert rank_cores(range(8), 1, 4, "cpu") == [2, 3]
        with pytest.raises(ConfigError, match="BIND_CPU=1 needs a core for each of 4 ranks, 2 are usable"):
            rank_cores(range(2), 0, 4, "cpu")
        monkeypatch.setenv("BIND_CPU", "0")
        assert rank_cores(range(8), 1, 4, "npu") is None

    def test_cpu_binding_num(self, monkeypatch):
        monkeypatch.setenv("CPU_BINDING_NUM", "3")
        assert rank_cores(range(8), 1, 2, "cpu") == [3, 4, 5]
        with pytest.raises(ConfigError, match="CPU_BINDING_NUM=3 for 4 ranks needs 12 cores, 8 are usable"):
            rank_cores(range(8), 0, 4, "cpu")
