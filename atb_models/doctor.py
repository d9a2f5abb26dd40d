"""`atb-models doctor`: checks step by step whether an Ascend NPU can be used here, and says what to do if not."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Mapping
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, TextIO

from atb_models import __version__
from atb_models.errors import ConfigError
from atb_models.files import read_text
from atb_models.wording import message_lines

OK, ODD, BAD, SKIPPED = "ok", "?", "FAIL", "-"
# Variables that the vendor's set_env.sh exports, and the files with the versions: CANN's is in a folder named for the
# machine (x86_64-linux), nnal's is above the folder of an ABI (latest/atb/cxx_abi_1).
CANN_HOMES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")
INSTALL_INFO = "ascend_toolkit_install.info"
NNAL_HOME, NNAL_INFO = "ATB_HOME_PATH", "../../version.info"
TOLERANCE = 2e-3  # for float16 numbers near 1


class Unusual(Exception):
    """Something is not as on a machine with an NPU; whether that matters, later steps show."""


def print_checks(out: TextIO) -> bool:
    """Write the results to `out`, as for a bug report. Returns whether an NPU can be used.

    The checks end at the first that fails, because each needs those before it.
    """
    print(f"atb-models {__version__} doctor: can the ranks compute on an Ascend NPU here?", file=out)
    failed = False
    for name, check in CHECKS.items():
        state, said = (SKIPPED, "not tried") if failed else _outcome(check)
        failed = failed or state == BAD
        print(f"{state:4}  {name:10}  {said}", file=out, flush=True)
    print("no: first fix what the line with FAIL reports" if failed else "yes", file=out)
    return not failed


def _outcome(check: Callable[[], str]) -> tuple[str, str]:
    try:
        return OK, check()
    except Unusual as error:
        return ODD, str(error)
    except (ConfigError, ImportError, OSError, RuntimeError, metadata.PackageNotFoundError) as error:
        return BAD, message_lines(error)[0].removeprefix("device npu: ")


def _system() -> str:
    return f"python {platform.python_version()}, {platform.platform()}"


def _packages() -> str:
    from atb_models.machine import npu

    if not npu.installed():
        raise ConfigError(npu.not_installed())
    torch, torch_npu = (metadata.version(name) for name in ("torch", "torch_npu"))
    npu.check_versions(torch, torch_npu)
    return f"torch {torch}, torch_npu {torch_npu}"


def driver(dev: Path = Path("/dev"), info: Path = Path("/usr/local/Ascend/driver/version.info")) -> str:
    """The driver's version and device files. Raises Unusual if there are none."""
    devices = sorted((path.name for path in dev.glob("davinci[0-9]*")), key=lambda name: int(name[len("davinci") :]))
    version = re.search(r"(?im)^version=(\S+)", read_text(info)) if info.is_file() else None
    said = f"version {version[1] if version else 'unknown'}, {dev}: {', '.join(devices) or 'no davinci devices'}"
    if not devices or not version:
        raise Unusual(f"{said}; in a container, is the driver mounted, and are the devices passed on?")
    return said


def cann(environ: Mapping[str, str] | None = None) -> str:
    """CANN's version and folder, as its set_env.sh exports them. Raises Unusual if that was not sourced."""
    environ = os.environ if environ is None else environ
    homes = [environ[name] for name in CANN_HOMES if environ.get(name)]
    if not homes:
        raise Unusual("set_env.sh was not sourced (ASCEND_HOME_PATH is not set)")
    files = sorted(Path(homes[0]).glob(f"*-linux/{INSTALL_INFO}"))
    version = re.search(r"(?m)^version=(\S+)", read_text(files[0])) if files else None
    return f"version {version[1] if version else 'unknown'}, {homes[0]}"


def nnal(environ: Mapping[str, str] | None = None) -> str:
    """nnal's version and folder, likewise. Nothing here uses its operators (ATB)."""
    home = (os.environ if environ is None else environ).get(NNAL_HOME)
    if not home:
        return f"not set up ({NNAL_HOME} is not set), and not needed"
    info = Path(home) / NNAL_INFO
    version = re.search(r"(?m)^\s*Ascend-cann-atb Version *: *(\S+)", read_text(info)) if info.is_file() else None
    return f"version {version[1] if version else 'unknown'}, {home}"


def _libraries() -> str:
    from atb_models.machine import npu

    return f"torch_npu is imported, {npu.devices()}"


def _device() -> str:
    from atb_models.machine.device import rank_device

    device = rank_device("npu", 0)
    torch: Any = import_module("torch")
    free, total = torch.npu.mem_get_info(device)
    return f"{device}: {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def _operator() -> str:
    """Compares an operator of torch_npu with the same on the CPU."""
    torch: Any = import_module("torch")
    x = torch.linspace(-1, 1, 256, dtype=torch.float16).view(2, 128)
    weight = torch.ones(128, dtype=torch.float16)
    ours = import_module("torch_npu").npu_rms_norm(x.to("npu:0"), weight.to("npu:0"), 1e-6)[0].cpu()
    error = (ours.float() - torch.nn.functional.rms_norm(x.float(), (128,), None, 1e-6)).abs().max().item()
    if not error <= TOLERANCE:
        raise ConfigError(f"npu_rms_norm is off by {error:.1e}: the device or CANN computes wrongly")
    return f"npu_rms_norm agrees with the CPU (off by {error:.0e})"


CHECKS: dict[str, Callable[[], str]] = {
    "system": _system,
    "packages": _packages,
    "driver": driver,
    "CANN": cann,
    "nnal": nnal,
    "libraries": _libraries,
    "device": _device,
    "operator": _operator,
}
