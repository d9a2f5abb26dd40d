"""The plan of a card has the card's layouts, whatever serves this machine; that of this CPU has its library's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atb_models import ops
from atb_models.limits import Limits
from atb_models.models.config import ModelConfig
from atb_models.models.config_reader import load_model_config
from atb_models.ops import table
from atb_models.ops.native.library import active
from atb_models.ops.plane import Plane
from atb_models.plan.capacity import Deployment
from atb_models.plan.chips import Chip, load_chips
from atb_models.plan.plan import Plan, make_plan, to_json
from tests.plan.test_roofline import CHIP

CPU = replace(CHIP, name="a CPU", device_type="cpu", shared=True)
LIMITS = Limits(1, 512, 1024, 128)


@pytest.fixture
def config(demo: Path) -> ModelConfig:
    """Experts so narrow that the library fills their panels up."""
    return replace(load_model_config(demo, log=False), moe_intermediate_size=20)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU library serves, where there is one."""
    monkeypatch.delenv("ATB_CPU_ISA")
    if active().level is None:
        pytest.skip(f"no level of the CPU library serves: {active().why}")
    ops.bind("cpu")
    yield
    monkeypatch.undo()
    ops.bind("reference")


def plan(config: ModelConfig, chips: dict[str, Chip]) -> Plan:
    return make_plan("a", "fp16", Deployment(config, torch.float16, 1, LIMITS), 1 << 30, chips)


@pytest.mark.usefixtures("library")
def test_cards_do_not_depend_on_this_machines_library(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    chips = load_chips() | {"small": CHIP, CPU.name: CPU}
    with_library = plan(config, chips)
    assert table.TABLE["MoeExperts"].backend == "cpu"  # bound as before
    monkeypatch.setenv("ATB_CPU_ISA", "reference")
    ops.bind("cpu")
    with_torch = plan(config, chips)
    ours, theirs = to_json(with_library), to_json(with_torch)
    assert ours["cards"] == theirs["cards"]
    for name in chips:
        assert (ours["chips"][name] == theirs["chips"][name]) == (name != CPU.name), name
    packed, plain = with_library.memory, with_torch.memory
    assert packed.weights > plain.weights == with_library.memory_of["cuda"].weights
    assert with_library.memory_of["cpu"] == packed


def test_wide_heads_of_the_npu_cost_cache_and_traffic(config: ModelConfig) -> None:
    """Its attention takes heads of 128: narrower ones lie padded, four times as wide for heads of 32."""
    chips = {kind: replace(CHIP, name=kind, device_type=kind) for kind in ("npu", "cuda")}
    made = plan(replace(config, head_dim=32), chips)
    assert made.memory_of["npu"].kv_per_token == 4 * made.memory_of["cuda"].kv_per_token
    assert made.memory_of["npu"].weights == made.memory_of["cuda"].weights
    npu, cuda = (made.cells[kind] for kind in chips)
    longest, shortest = (npu[i].per_token.memory - cuda[i].per_token.memory for i in (0, -7))
    assert longest > shortest > 0


def test_what_the_npu_lays_out() -> None:
    with ops.laid_out_for("npu"):
        assert ops.kv_plane_shape(128, Plane("k", 4, 80, torch.float16)) == (128, 4, 128)
        assert ops.kv_plane_shape(128, Plane("latent", None, 576, torch.float16)) == (128, 576)
    assert ops.kv_plane_shape(128, Plane("k", 4, 80, torch.float16)) == (128, 4, 80)


def test_the_binding_comes_back_after_an_error(config: ModelConfig) -> None:
    before = [(operation.run, operation.backend) for operation in ops.operations()]
    with pytest.raises(KeyError), ops.laid_out_for("npu"):
        raise KeyError
    assert [(operation.run, operation.backend) for operation in ops.operations()] == before
