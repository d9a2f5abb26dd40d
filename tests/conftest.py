"""Fixtures for all tests."""

from __future__ import annotations

import logging
import os
import platform
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from atb_models import env
from atb_models.demo import demo_path
from tests.kept_ranks import KeptRanks

# Many tests start ranks on few cores, where a second thread each only gets in the way; torch reads it when imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# torch imports a torch_npu by itself, and fails where CANN is missing.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

# A suite started in the background (nohup, &) ignores these, and so would the programs whose end it tests.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# What a test's own fixtures choose for its process.
KEPT = ("OMP_NUM_THREADS", "ATB_CPU_ISA")
ROOT = Path(__file__).resolve().parents[1]


def pytest_report_header() -> str:
    """Which levels of the CPU library the tests cover here."""
    from atb_models.ops.native.build import levels_of
    from atb_models.ops.native.library import cpu_flags

    levels = [level.name for level in levels_of(platform.machine()) if level.needs <= cpu_flags()]
    return f"levels of the CPU library that this machine has: {', '.join(levels) or 'none'}"


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root."""
    return ROOT


@pytest.fixture(scope="session")
def demo() -> Path:
    """The embedded checkpoint."""
    return demo_path()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The developers' data beside the project; a test that uses it is skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip(f"needs {folder}, which only developers have")
    return folder


@pytest.fixture(scope="session")
def kept_ranks() -> Iterator[KeptRanks]:
    """Ranks that run one model after another, for tests of what a model gives on several. Those of ranks/, which count
    the children of this process, end them first."""
    ranks = KeptRanks()
    yield ranks
    ranks.close()


@pytest.fixture(autouse=True)
def restored_logger() -> Iterator[None]:
    """The logger as pytest's capturing needs it, whatever `log.setup` has made of it."""
    logger = logging.getLogger("atb_models")
    before = logger.level, logger.propagate, list(logger.handlers)
    yield
    for handler in logger.handlers:
        if handler not in before[2]:
            handler.close()
    logger.level, logger.propagate, logger.handlers[:] = before


@pytest.fixture
def clean_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment without any variable that the project reads or reports, those of KEPT excepted."""
    for name in list(os.environ):
        if (name in env.TABLE or name.startswith(env.PREFIXES)) and name not in KEPT:
            monkeypatch.delenv(name)
