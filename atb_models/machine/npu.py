"""Start of the Ascend device: what must be set before torch_npu is imported, and messages for what is missing."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, metadata

from atb_models import env
from atb_models.errors import ConfigError
from atb_models.machine import determinism
from atb_models.wording import install_command, message_lines, pip_install

logger = logging.getLogger(__name__)

# For the Ascend libraries, which read them when they are loaded; the user's own values are kept.
DEFAULTS = {
    "HCCL_HOST_SOCKET_PORT_RANGE": "auto",  # each rank takes free ports
    "HCCL_NPU_SOCKET_PORT_RANGE": "auto",
    "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
    "INF_NAN_MODE_ENABLE": "1",  # overflow is inf, as on other devices
}
# Says the same as the default's variable, which the library would obey instead: where the user set it, no default.
SAME_AS = {"HCCL_HOST_SOCKET_PORT_RANGE": "HCCL_IF_BASE_PORT", "INF_NAN_MODE_ENABLE": "INF_NAN_MODE_FORCE_DISABLE"}
SET_ENV = "source /usr/local/Ascend/cann/set_env.sh"
_VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"


def installed() -> bool:
    """Whether torch_npu is installed; does not import it."""
    return importlib.util.find_spec("torch_npu") is not None


def not_installed() -> str:
    return f"torch_npu is not installed; {install_command('npu')}, or use --device cpu"


def usable(*, wanted: bool, deterministic: bool = False) -> bool:
    """Whether ranks can compute on an NPU here. If `wanted`, raises ConfigError, which says what is missing.

    With `deterministic`, also raises for a variable that contradicts it, whether `wanted` or not.
    """
    if not wanted and not installed():
        return False
    if deterministic:
        determinism.check("npu")
    try:
        load(deterministic=deterministic)
    except ConfigError as error:
        if wanted:
            raise
        logger.warning("torch_npu is installed, but no NPU is used: %s", error)
        return False
    return True


def load(*, deterministic: bool = False) -> None:
    """Import torch_npu and check that there are devices. Raises ConfigError, which names the remedy.

    The variables that the libraries need are set before, and removed again if this fails.
    """
    if not installed():
        raise ConfigError(f"device npu: {not_installed()}")
    check_versions(metadata.version("torch"), metadata.version("torch_npu"))
    with _unset_on_failure():
        if deterministic:
            determinism.export("npu")
        _set_defaults()
        try:
            import_module("torch_npu")
        except (ImportError, OSError, RuntimeError) as error:
            raise ConfigError(f"device npu: {import_problem(str(error))}") from None
        visible_count()


@contextmanager
def _unset_on_failure() -> Iterator[None]:
    """After an exception, restore the environment: variables set here would be reported as the user's."""
    before = dict(os.environ)
    try:
        yield
    except BaseException:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
        raise


def _set_defaults() -> None:
    if not env.is_set(_VISIBLE):
        os.environ.pop(_VISIBLE, None)  # the driver would take an empty list for no device
    for name, value in DEFAULTS.items():
        if name not in SAME_AS or not env.is_set(SAME_AS[name]):
            env.set_default(name, value)
    if env.get("INF_NAN_MODE_ENABLE") == "0":
        # Atlas A2 and later need this as well to saturate, and do not start without it.
        env.set_default("INF_NAN_MODE_FORCE_DISABLE", "1")


def check_versions(torch: str, torch_npu: str) -> None:
    """torch_npu is built for one release of torch. Raises ConfigError if their first three numbers differ."""
    built_for = _release(torch_npu)
    if _release(torch) != built_for:
        raise ConfigError(
            f"device npu: torch_npu {torch_npu} does not go with torch {torch};"
            f" {pip_install(f'torch=={built_for}')}, or the torch_npu of that torch"
        )


def _release(version: str) -> str:
    """The first three numbers: 2.13.0 for 2.13.0+cpu, 2.13.0.post2 and 2.13.0rc1."""
    found = re.match(r"\d+(\.\d+){0,2}", version)
    return found[0] if found else version


def import_problem(message: str) -> str:
    """What an import error of torch_npu means, and what to do."""
    absent = re.search(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file", message)
    if absent and absent[1].startswith(("libascend_hal", "libdrvdsmi", "libc_sec")):
        return f"the Ascend driver is not there ({absent[1]}); install it, or mount it into this container"
    if absent:
        where = f"{SET_ENV} (ascend-toolkit/ before CANN 8.5)"
        return f"CANN is not there or not set up ({absent[1]} was not found); {where}, or install it"
    if "undefined symbol" in message:
        symbol = message.rpartition("undefined symbol: ")[2].split()[0]
        return f"CANN is older or newer than this torch_npu needs (no {symbol}); install the CANN it was released for"
    return f"torch_npu cannot be imported: {message_lines(message.strip() or 'no reason given')[0]}"


def visible_count() -> int:
    """Number of devices that this process sees. Raises ConfigError if there are none, or fewer than the user lists."""
    listed, count = env.get(_VISIBLE), int(import_module("torch_npu").npu.device_count())
    if listed and len(listed) != count:
        raise ConfigError(
            f"{_VISIBLE}={','.join(map(str, listed))} names {len(listed)} devices, the driver shows {count} of them;"
            " name only those that `npu-smi info` lists"
        )
    if count == 0:
        raise ConfigError(
            "device npu: the driver shows no device; see `npu-smi info`, and start a container with"
            " --device /dev/davinci0 (and so on) and --device /dev/davinci_manager"
        )
    return count


def devices() -> str:
    """How many devices there are and of which chip; none of them is taken into use for this."""
    load()
    # With a device number: without it, the call takes the current device into use.
    return f"{visible_count()} x {import_module('torch_npu').npu.get_device_name(0)}"


@contextmanager
def all_visible() -> Iterator[None]:
    """Within it all devices of this host are visible, whichever the user lists.

    For the launcher, which does not compute: the driver reads the user's list only once in a process.
    """
    listed = os.environ.pop(_VISIBLE, None)
    try:
        yield
    finally:
        if listed is not None:
            os.environ[_VISIBLE] = listed
