"""Importing this package changes nothing that belongs to the whole process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Others' packages come first: what they change themselves is no concern of ours.
LOOK = """
import faulthandler, gc, importlib, locale, logging, os, pkgutil, signal, socket, sys, threading, warnings
import numpy, safetensors.torch, tokenizers, torch, torch.distributed, tqdm, transformers
for name in ("fastapi", "uvicorn", "prometheus_client", "multiprocessing", "concurrent.futures", "asyncio"):
    importlib.import_module(name)

def state():
    onednn, matmul = torch.backends.mkldnn, torch.backends.cuda.matmul
    return {
        "tqdm.monitor_interval": tqdm.tqdm.monitor_interval,
        "tqdm.monitor": tqdm.tqdm.monitor,
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()),
        "torch": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed(), onednn.enabled),
        "cuda": (matmul.allow_tf32, matmul.allow_fp16_reduced_precision_reduction),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "print options": str(torch._tensor_str.PRINT_OPTS),
        "numpy": (numpy.geterr(), numpy.get_printoptions()["precision"]),
        "warnings": list(warnings.filters),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook),
        "interpreter": (sys.getrecursionlimit(), sys.getswitchinterval(), gc.isenabled(), faulthandler.is_enabled()),
        "integers": sys.get_int_max_str_digits() if hasattr(sys, "get_int_max_str_digits") else None,
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "log": (logging.root.level, list(logging.root.handlers), logging.getLogger("atb_models").handlers),
        "sockets": socket.getdefaulttimeout(),
        "locale": locale.setlocale(locale.LC_ALL),
        "umask": [os.umask(mask := os.umask(0)), mask],
        "environ": {name: value for name, value in os.environ.items() if name != "TORCH_DEVICE_BACKEND_AUTOLOAD"},
        "folder": os.getcwd(),
        "path": list(sys.path),
    }

before = state()
import atb_models
for module in pkgutil.walk_packages(atb_models.__path__, "atb_models."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        assert error.name == "torch_npu", error
after = state()
print("modules:", sum(name.startswith("atb_models.") for name in sys.modules))
for name in before:
    if before[name] != after[name]:
        print(f"{name}: {before[name]} -> {after[name]}")
"""


def test_importing_every_module_changes_nothing_of_the_process(root: Path) -> None:
    environ = os.environ | {"PYTHONPATH": str(root), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    ended = subprocess.run([sys.executable, "-c", LOOK], env=environ, capture_output=True, text=True, timeout=240)
    count, *changed = ended.stdout.splitlines()
    assert ended.returncode == 0, ended.stderr
    assert int(count.removeprefix("modules: ")) > 150
    assert changed == []


def test_a_loading_bar_starts_no_thread(root: Path) -> None:
    """Nor does it stop the bars of the program's own from having one."""
    program = (
        "import threading\nimport tqdm\nfrom atb_models import LLM\n"
        "with LLM(device='cpu', kv_blocks=2): pass\n"
        "print(threading.active_count(), tqdm.tqdm.monitor_interval)\n"
    )
    environ = os.environ | {"PYTHONPATH": str(root)}
    ended = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=120)
    assert ended.stdout.split() == ["1", "10"], ended.stderr
    assert "loading weights" in ended.stderr
