"""What a backend may change besides the operations' bodies: how a loaded weight lies, and the shape of a KV block."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atb_models import LLM, SamplingParams, ops
from atb_models.demo import questions
from atb_models.errors import ConfigError
from atb_models.graph import meta_model, meta_step, trace
from atb_models.layers.mlp import Experts
from atb_models.layers.parameter import fillings
from atb_models.limits import Limits
from atb_models.models.config_reader import load_model_config
from atb_models.models.decoder import build_model
from atb_models.models.weights.loader import load_weights
from atb_models.models.weights.opening import open_weights
from atb_models.models.weights.packer import packing_bytes
from atb_models.ops import table
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.plane import Plane
from atb_models.ops.weight import Layout, Weight
from atb_models.plan.memory import RankMemory, rank_memory
from atb_models.profiler import Recorder
from tests.records import build_of, map_tensors
from tests.tiny import write_checkpoint

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A backend that takes the CPU's place and has no operations yet."""
    module = ModuleType("tests_backend")
    module.OPS, module.PACKINGS = {}, {}  # type: ignore[attr-defined]
    module.plane_shape = lambda block_size, plane: plane.block_shape(block_size)  # type: ignore[attr-defined]
    module.backend = lambda: table.Backend(  # type: ignore[attr-defined]
        module.OPS, {}, module.PACKINGS, module.plane_shape
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(table.BACKENDS, "cpu", module.__name__)
    yield module
    monkeypatch.undo()
    ops.bind("cpu")


def experts_of(llm: LLM) -> list[Experts]:
    return [module for module in llm._runner.model.modules() if isinstance(module, Experts)]


class Int8Blocks:
    """Blocks of four output rows, int8 with a scale for each row: another shape and data type than the weight's."""

    name = "int8 blocks"
    rows = 4

    def __init__(self) -> None:
        self.packed: list[tuple[tuple[int, ...], int | None, int, int]] = []
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def takes(self, plain: Layout) -> bool:
        return not plain.quantized

    def layout(self, plain: Layout) -> Layout:
        *stack, outputs, inputs = plain.shape
        blocks = -(-outputs // 4)
        stored, scales = (*stack, blocks, inputs, 4), (*stack, blocks * 4)
        return replace(plain, dtype=torch.int8, stored=stored, scales=scales, packing=self)

    def pack(self, band_OI: Tensor, weight: Weight, unit: int | None, first: int = 0) -> None:
        assert not self.alive, "rows were kept beside those that are packed"
        self.alive.add(band_OI)
        self.packed.append((weight.shape, unit, first, len(band_OI)))
        assert weight.scale is not None
        data, scales = (weight.data, weight.scale) if unit is None else (weight.data[unit], weight.scale[unit])
        rows = F.pad(band_OI.float(), (0, 0, 0, -len(band_OI) % 4))
        scale = rows.abs().amax(1).clamp(min=1e-9) / 127
        scales[first:][: len(rows)] = scale
        blocks = (rows / scale[:, None]).round().to(torch.int8).view(-1, 4, rows.shape[1]).transpose(1, 2)
        data[first // 4 :][: len(blocks)] = blocks


def unpacked(weight: Weight) -> Weight:
    """The plain weight that an operation of these tests computes with."""
    if weight.layout.packing is None:
        return weight
    assert weight.scale is not None
    rows = weight.data.transpose(-1, -2).flatten(-3, -2).float() * weight.scale.unsqueeze(-1)
    return Weight.plain(rows[..., : weight.shape[-2], :].to(weight.layout.loaded))


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    return table.TABLE["Linear"].reference(x, unpacked(weight), bias)


def grouped(x: Tensor, weight: Weight, *rest: Any) -> Tensor:
    return table.TABLE["GroupedMatmul"].reference(x, unpacked(weight), *rest)


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch serves the CPU, and weights are as they are."""
    monkeypatch.setenv("ATB_CPU_ISA", "reference")


@pytest.fixture
def packing(backend: ModuleType) -> Int8Blocks:
    """The backend packs the weights of both products."""
    packing = Int8Blocks()
    backend.PACKINGS = {
        "Linear": {"weight_OI": packing}, "MoeExperts": {"gate_up_EGH": packing, "down_EHF": packing}
    }  # fmt: skip
    backend.OPS = {"Linear": linear, "GroupedMatmul": grouped}  # type: ignore[attr-defined]
    return packing


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_weights_are_stored_as_they_are(name: str, without_library: None) -> None:
    ops.bind(name)
    assert not any(operation.packings for operation in ops.operations())
    assert ops.kv_plane_shape(16, Plane("k", 2, 80, torch.float32)) == (16, 2, 80)
    assert ops.kv_plane_shape(16, Plane("latent", None, 576, torch.float32)) == (16, 576)


def test_plain_weights_are_read_straight_to_their_place(demo: Path, without_library: None) -> None:
    with LLM(demo, device="cpu") as llm:
        for experts in experts_of(llm):
            assert experts.gate_up.is_contiguous() and experts.down.is_contiguous()
            assert experts.stored_down.rows[0].data_ptr() == experts.down.data_ptr()


def test_a_backend_packs_each_matrix_once_while_it_is_loaded(tmp_path: Path, packing: Int8Blocks) -> None:
    tensors = write_checkpoint(tmp_path)
    with LLM(tmp_path, dtype="fp32", device="cpu") as llm:
        model = llm._runner.model
        stored = {name: filling for name, filling in fillings(model).items() if filling.weight.layout.packing}
        units = sum(filling.weight.shape[0] if len(filling.weight.shape) == 3 else 1 for filling in stored.values())
        assert len(packing.packed) == units > 40
        assert "lm_head.weight" in stored and not {"embed.weight", "layers.1.mlp.router.weight"} & stored.keys()
        down = unpacked(experts_of(llm)[0].stored_down).rows[3]
        exact = tensors["model.layers.1.mlp.experts.3.down_proj.weight"].float()
        assert (down - exact).abs().max() <= exact.abs().max() / 127
        assert llm.prompt_logits(PROMPT).isfinite().all()


@pytest.mark.parametrize("tp", [1, 4])
def test_large_matrices_are_packed_in_bands(
    tmp_path: Path, packing: Int8Blocks, tp: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same stored weights as of whole matrices, with their padding, and no more rows at a time than planned."""
    write_checkpoint(tmp_path, vocab_size=250)
    config = load_model_config(tmp_path)
    ops.bind("cpu")
    stored, scratch = [], []
    for band in (1 << 22, 900):
        monkeypatch.setattr("atb_models.models.weights.packer.BAND", band)
        packing.packed.clear()
        model = build_model(config, build_of(torch.float32, tp - 1, tp))
        load_weights(model, config, open_weights(tmp_path, "auto", model, config))
        stored.append(model.state_dict())
        scratch.append(max(rows * shape[-1] for shape, _, _, rows in packing.packed))
        assert scratch[-1] * 4 == max(map(packing_bytes, fillings(model).values()))
    assert scratch[1] < scratch[0]
    assert all(torch.equal(tensor, stored[1][name]) for name, tensor in stored[0].items())
    assert any(first > 0 for _, _, first, _ in packing.packed)


def test_a_packed_model_answers_like_the_plain_one(demo: Path, packing: Int8Blocks) -> None:
    """The toy's answers have wide margins; a row in the wrong place would be nonsense."""
    question = questions()[0]
    prompt = [{"role": "user", "content": str(question["question"])}]
    with LLM(demo, dtype="fp32", device="cpu") as llm:
        answer = llm.chat([prompt], SamplingParams(max_tokens=int(question["max_tokens"])))[0].text
    assert answer == question["answer"]


@pytest.mark.parametrize("tied", [False, True])
def test_packed_weights_are_planned_with_their_true_bytes(tmp_path: Path, packing: Int8Blocks, tied: bool) -> None:
    write_checkpoint(tmp_path, tie_word_embeddings=tied)
    config = load_model_config(tmp_path)
    limits = Limits(max_batch_size=2, max_prefill_tokens=16, max_seq_len=64, block_size=16)
    ops.bind("cpu")
    planned = rank_memory(config, torch.float16, 1, limits)
    with LLM(tmp_path, device="cpu") as llm:
        model = llm._runner.model
        held = sum(parameter.nbytes for parameter in model.parameters())
        plain = sum(parameter.numel() for parameter in model.parameters() if parameter.dtype == torch.int8)
    assert planned.weights == held
    assert plain < held < 1.6 * plain, "it would be twice as much in half precision"
    widest = max(math.prod(filling.weight.shape[-2:]) for filling in fillings(model).values()
                 if filling.weight.layout.packing)  # fmt: skip
    assert planned.packing == 2 * widest


def test_memory_counts_the_matrix_that_is_being_packed() -> None:
    memory = RankMemory(weights=1000, activations=50, kv_per_token=1, block_size=10, packing=80)
    assert (memory.needed(0), memory.needed(2), memory.needed(4)) == (1080, 1080, 1090)
    assert (memory.kv_blocks(1079), memory.kv_blocks(1080)) == (0, 3)


def test_packed_weights_are_traced_and_profiled_by_their_own_shape(demo: Path, packing: Int8Blocks) -> None:
    config = load_model_config(demo)
    ops.bind("cpu")
    graph = trace(meta_model(config, torch.float32), meta_step([4], [4], 128))
    node = next(node for node in graph.nodes if node.module == "layers.0.attn.qkv")
    assert node.inputs[1].shape == (3 * 128, 128) and node.inputs[1].name == "layers.0.attn.qkv.weight"
    assert node.cost.read == 4 * 128 * 4 + 3 * 128 * (128 + 4), "int8 and a scale a row"
    with LLM(demo, dtype="fp32", device="cpu", kv_blocks=4) as llm, Recorder(llm._runner) as recorder:
        llm.prompt_logits([1, 2, 3, 4])
    call = next(call for call in recorder.profile.calls if call.module == "layers.0.attn.qkv")
    assert call.shapes[1] == (3 * 128, 128) and call.cost.read == node.cost.read


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

    backend.plane_shape = plane_shape
    with pytest.raises(ConfigError, match="block_size 16: not here"):
        LLM(tmp_path, device="cpu", block_size=16)


def test_a_backend_packs_only_for_operations_there_are(backend: ModuleType) -> None:
    backend.PACKINGS = {"Unheard": {"weight": Int8Blocks()}}
    with pytest.raises(AssertionError, match="Unheard"):
        ops.bind("cpu")
