"""An operation whose body calls others is one node: traced by the others' shape rules, priced and timed as a whole.

Where it says so, its parts are shown until a backend serves it whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atb_models import LLM, ops
from atb_models.graph import meta_model, meta_step, trace
from atb_models.layers.mlp import Experts
from atb_models.models.config_reader import load_model_config
from atb_models.ops.cost import Cost
from atb_models.ops.table import TABLE, Op, op
from atb_models.ops.weight import Weight
from atb_models.plan.roofline import Times
from atb_models.profiler import Recorder

PARTS = {"MoeInitRouting", "GroupedMatmul", "MoeFinalizeRouting"}


def price(out: Tensor, x_TH: Tensor, gate_up: Weight, down: Weight, weights_TK: Tensor, experts_TK: Tensor) -> Cost:
    return Cost(flops=7, read=gate_up.nbytes, written=x_TH.nbytes)


@pytest.fixture(autouse=True)
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """No library packs the weights that these bodies multiply with."""
    monkeypatch.setenv("ATB_CPU_ISA", "reference")


@pytest.fixture
def composite(monkeypatch: pytest.MonkeyPatch) -> Iterator[Op]:
    """The routed experts as one operation, which no backend has: its parts are the bound backend's."""

    def experts(x_TH: Tensor, gate_up: Weight, down: Weight, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
        x_RH, rows_TK, counts_E = ops.moe_init_routing(x_TH, experts_TK, gate_up.shape[0])
        top_k = experts_TK.shape[1]
        h_RF = ops.swiglu(ops.grouped_matmul(x_RH, gate_up, counts_E, top_k))
        return ops.moe_finalize_routing(ops.grouped_matmul(h_RF, down, counts_E, top_k), rows_TK, weights_TK)

    defined = op("Routed", cost=price)(experts)

    def forward(self: Experts, x: Tensor, weights: Tensor, chosen: Tensor, counter: Any) -> Tensor:
        return defined(x, self.stored_gate_up, self.stored_down, weights, chosen)

    monkeypatch.setattr(Experts, "forward", forward)
    yield defined
    del TABLE["Routed"]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_is_traced_as_one_node(demo: Path, composite: Op, backend: str) -> None:
    config = load_model_config(demo)
    ops.bind(backend)
    graph = trace(meta_model(config, torch.float16), meta_step([8], [8], 128))
    moe = sum(config.moe_layers)
    assert graph.counts()["Routed"] == moe and not PARTS & graph.counts().keys()
    node = next(node for node in graph.nodes if node.op == "Routed")
    assert node.outputs[0].shape == (8, config.hidden_size)
    assert [value.argument for value in node.inputs] == ["x_TH", "gate_up", "down", "weights_TK", "experts_TK"]
    assert node.cost == Cost(flops=7, read=16 * 2 * 64 * 128 * 2, written=8 * 128 * 2), "its own rule, not its parts'"
    assert graph.stray == ()
    rows = 8 * config.num_experts_per_tok
    assert node.peak_bytes > rows * (config.hidden_size + 2 * config.moe_intermediate_size) * 2, "its parts' workspace"


def test_is_profiled_as_one_operation(demo: Path, composite: Op) -> None:
    with LLM(demo, dtype="fp32", device="cpu", kv_blocks=4) as llm:
        expected = llm.prompt_logits([5, 6, 7])
        with Recorder(llm._runner, lambda cost, _: Times(compute=cost.flops, total=cost.flops)) as recorder:
            assert torch.equal(llm.prompt_logits([5, 6, 7]), expected)
    calls = [call for call in recorder.profile.calls if call.op == "Routed"]
    assert len(calls) == 3 and all(call.cost.flops == 7 and call.least == (7, "compute") for call in calls)
    assert all(call.end > call.start for call in calls)
    assert not PARTS & {call.op for call in recorder.profile.calls}


def test_in_parts_until_a_backend_serves_it(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_model_config(demo)
    ops.bind("reference")
    step = meta_step([8], [8], 128)
    parts = trace(meta_model(config, torch.float16), step)
    assert PARTS < parts.counts().keys() and "MoeExperts" not in parts.counts()
    monkeypatch.setattr(ops.moe_experts, "backend", "cpu")
    whole = trace(meta_model(config, torch.float16), step)
    assert whole.counts()["MoeExperts"] == sum(config.moe_layers) and not PARTS & whole.counts().keys()
    node = next(node for node in whole.nodes if node.op == "MoeExperts")
    assert node.module == "layers.1.mlp.experts"
    first = [part for part in parts.nodes if part.module == node.module]
    assert node.cost.flops == sum(part.cost.flops for part in first)
    assert node.cost.read < sum(part.cost.read for part in first)


def test_rope_and_cache_is_in_parts_until_a_backend_serves_it(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_model_config(demo)
    ops.bind("reference")
    step = meta_step([8, 1], [8, 40], 128)
    parts = trace(meta_model(config, torch.float16), step)
    assert {"Rope", "ReshapeAndCache"} < parts.counts().keys() and "RopeAndCache" not in parts.counts()
    monkeypatch.setattr(ops.rope_and_cache, "backend", "cpu")
    whole = trace(meta_model(config, torch.float16), step)
    assert whole.counts()["RopeAndCache"] == config.num_hidden_layers
    assert not {"Rope", "ReshapeAndCache"} & whole.counts().keys() and whole.stray == ()
    node = next(node for node in whole.nodes if node.op == "RopeAndCache")
    first = [part for part in parts.nodes if part.module == node.module and part.op in ("Rope", "ReshapeAndCache")]
    assert node.module == "layers.0.attn" and set(node.writes) == {"layers.0.k_PSMD", "layers.0.v_PSMD"}
    keys = 9 * 8 * 16 * 2  # bytes of the rotated keys, which the parts write and read once more
    assert node.cost.flops == sum(part.cost.flops for part in first)
    assert node.cost.read == sum(part.cost.read for part in first) - keys
    assert node.cost.written == sum(part.cost.written for part in first) - keys
    attention = next(node for node in whole.nodes if node.op == "PagedAttention")
    assert [value.node for value in attention.inputs[:3]] == [node.index] * 3
