"""Which devices the launcher's ranks use: one rank a device."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from atb_models.errors import ConfigError

logger = logging.getLogger(__name__)

DEFAULT_DEVICES = (0, 1, 2, 3, 4, 5, 6, 7)


def existing_devices(wanted: str | None, *, deterministic: bool = False) -> tuple[str, int | None]:
    """The kind of device to use and how many of it there are; None on a CPU, which any number of ranks may share."""
    from atb_models.machine.device import device_module, present_device
    from atb_models.machine.npu import all_visible

    with all_visible():
        kind = present_device(wanted, deterministic=deterministic)
        return kind, None if kind == "cpu" else device_module(kind).device_count()


def choose_devices(listed: Sequence[int] | None, existing: int | None, tp: int | None) -> tuple[int, ...]:
    """The devices of the ranks: the user's list, else 0 to 7, or 0 to `tp` - 1 if that is given.

    The default list is cut to what exists. Raises ConfigError, with both numbers, for a list that names more and for a
    `tp` that is not the number of devices.
    """
    if listed is None:
        if tp is not None and existing is not None and tp > existing:
            raise ConfigError(f"--tp {tp} needs {tp} devices, {existing} exist; lower it, or run on --device cpu")
        if tp is not None:
            return tuple(range(tp))
        if existing is not None and existing < len(DEFAULT_DEVICES):
            logger.warning("%d devices exist: using these instead of the default 0 to 7", existing)
            return DEFAULT_DEVICES[:existing]
        return DEFAULT_DEVICES
    named = ",".join(map(str, listed))
    if existing is not None:
        from atb_models.machine.device import check_listed

        check_listed(listed, existing)
    if tp is not None and tp != len(listed):
        raise ConfigError(
            f"--tp {tp} contradicts ASCEND_RT_VISIBLE_DEVICES={named}, which names {len(listed)} devices; change one"
        )
    return tuple(listed)


def export_devices(kind: str, devices: Sequence[int], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that give the ranks these devices.

    On CUDA the numbers select within the user's CUDA_VISIBLE_DEVICES.
    """
    exported = {"ASCEND_RT_VISIBLE_DEVICES": ",".join(map(str, devices))}
    if kind == "cuda":
        visible = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        exported["CUDA_VISIBLE_DEVICES"] = ",".join(visible[i] if visible else str(i) for i in devices)
    return exported
