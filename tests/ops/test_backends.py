"""What a backend may change besides the operations' bodies: how a loaded weight lies, and the shape of a KV block."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atb_models import LLM, ops
from atb_models.errors import ConfigError
from atb_models.layers.mlp import Experts
from atb_models.layers.parameter import parts_of
from atb_models.ops import table
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.plane import Plane
from tests.records import map_tensors
from tests.tiny import write_checkpoint

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A backend that takes the CPU's place and has no operations yet."""
    module = ModuleType("tests_backend")
    module.OPS = {}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(table.BACKENDS, "cpu", module.__name__)
    yield module
    monkeypatch.undo()
    ops.bind("cpu")


def experts_of(llm: LLM) -> list[Experts]:
    return [module for module in llm._runner.model.modules() if isinstance(module, Experts)]


def transposed(weight: Tensor) -> Tensor:
    return weight.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_weights_stay_as_they_are_loaded(name: str) -> None:
    ops.bind(name)
    weight = torch.zeros(2, 3, 4)
    assert all(operation.prepare(weight) is weight for operation in ops.operations())
    assert ops.kv_plane_shape(16, Plane("k", 2, 80, torch.float32)) == (16, 2, 80)
    assert ops.kv_plane_shape(16, Plane("latent", None, 576, torch.float32)) == (16, 576)


def test_loading_leaves_the_experts_of_a_cpu_alone(demo: Path) -> None:
    with LLM(demo, device="cpu") as llm:
        for experts in experts_of(llm):
            assert experts.gate_up.is_contiguous() and experts.down.is_contiguous()
            part = parts_of(experts.down)["0"]
            assert part.target.data_ptr() == experts.down.data_ptr()


def test_a_backend_lays_out_each_loaded_stack_once(tmp_path: Path, backend: ModuleType) -> None:
    write_checkpoint(tmp_path)
    with LLM(tmp_path, dtype="fp32", device="cpu") as llm:
        expected = llm.prompt_logits([PROMPT])[0]
        loaded = [experts.gate_up.clone() for experts in experts_of(llm)]
    laid_out: list[Tensor] = []

    def prepare(weight: Tensor) -> Tensor:
        laid_out.append(weight)
        return transposed(weight)

    backend.PREPARE = {"GroupedMatmul": prepare}
    with LLM(tmp_path, dtype="fp32", device="cpu") as llm:
        assert len(laid_out) == 2 * len(loaded)
        for experts, before in zip(experts_of(llm), loaded, strict=True):
            assert torch.equal(experts.gate_up, before)
            assert experts.gate_up.transpose(1, 2).is_contiguous()
            assert parts_of(experts.gate_up) == {}, "they would keep the memory of the weights as loaded"
        torch.testing.assert_close(llm.prompt_logits([PROMPT])[0], expected)


def test_a_backend_may_pad_the_heads_of_the_cache(tmp_path: Path, backend: ModuleType) -> None:
    """With operations that write padded heads and read the narrow ones."""
    write_checkpoint(tmp_path)
    with LLM(tmp_path, dtype="fp32", device="cpu") as llm:
        expected = llm.prompt_logits([PROMPT])[0]
    asked: list[tuple[int, Plane]] = []

    def plane_shape(block_size: int, plane: Plane) -> tuple[int, ...]:
        asked.append((block_size, plane))
        return block_size, plane.heads, 2 * plane.width

    def write(k: Tensor, v: Tensor, *rest: object) -> None:
        table.TABLE["ReshapeAndCache"].reference(*(F.pad(x, (0, x.shape[-1])) for x in (k, v)), *rest)

    def attend(q: Tensor, cache: LayerCache, *rest: object) -> Tensor:
        narrow = map_tensors(lambda plane: plane[..., : q.shape[-1]], cache)
        return table.TABLE["PagedAttention"].reference(q, narrow, *rest)

    backend.plane_shape, backend.OPS = plane_shape, {"ReshapeAndCache": write, "PagedAttention": attend}
    with LLM(tmp_path, dtype="fp32", device="cpu", block_size=16, kv_blocks=4) as llm:
        assert llm._runner.caches[0].k_PSMD.shape == (4, 16, 8, 16)
        assert (16, Plane("k", 8, 8, torch.float32)) in asked
        torch.testing.assert_close(llm.prompt_logits([PROMPT])[0], expected)


def test_what_a_backend_refuses_is_refused_before_loading(tmp_path: Path, backend: ModuleType) -> None:
    write_checkpoint(tmp_path)

    def plane_shape(*_: object) -> tuple[int, ...]:
        raise ConfigError("block_size 16: not here")

    def prepare(weight: Tensor) -> Tensor:
        raise AssertionError("the weights were read")

    backend.plane_shape, backend.PREPARE = plane_shape, {"GroupedMatmul": prepare}
    with pytest.raises(ConfigError, match="block_size 16: not here"):
        LLM(tmp_path, device="cpu", block_size=16)


def test_a_backend_prepares_only_for_operations_there_are(backend: ModuleType) -> None:
    backend.PREPARE = {"Unheard": transposed}
    with pytest.raises(AssertionError, match="Unheard"):
        ops.bind("cpu")
