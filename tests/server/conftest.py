"""Fixtures of the service's tests: real server processes, started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from atb_models import LLM
from tests.server.running import ROOT, Running, running

for name in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(name, reason=f"needs {name}: pip install -e .[server]")

GROUP_TIMEOUT_S = 4


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """A server with the embedded checkpoint on one rank, shared by all tests that leave it as it is."""
    with running() as one:
        yield one


@pytest.fixture(scope="session")
def short_timeout(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables that make a process group's default timeout `GROUP_TIMEOUT_S`."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(
        "import datetime\n"
        "import torch.distributed.constants as constants\n"
        f"constants.default_pg_timeout = datetime.timedelta(seconds={GROUP_TIMEOUT_S})\n"
    )
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


@pytest.fixture(scope="session")
def server4(short_timeout: dict[str, str]) -> Iterator[Running]:
    """The same on four ranks, with a short timeout of process groups."""
    with running("--tp", "4", env=short_timeout) as one:
        yield one


@pytest.fixture(scope="session")
def closed() -> Iterator[Running]:
    """One with a key and a model of another name that never ends an answer by itself; it takes two requests at once."""
    endless = ("--config_overrides", '{"eos_token_id": 2495}')
    sizes = ("--max_queue", "1", "--max_batch_size", "1")
    with running(*endless, *sizes, "--model_name", "org/closed", env={"ATB_API_KEY": "right-key"}) as one:
        yield one


@pytest.fixture(scope="session", params=[1, 4], ids=["tp1", "tp4"])
def any_server(request: pytest.FixtureRequest) -> Running:
    """Each of the two."""
    one: Running = request.getfixturevalue("server" if request.param == 1 else "server4")
    return one


@pytest.fixture(scope="session")
def llm() -> Iterator[LLM]:
    """The same model without a server."""
    with LLM() as one:
        yield one
