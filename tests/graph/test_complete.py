"""All tensor work of a model's forward happens inside named operations, with and without values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from atb_models import ops
from atb_models.graph import OpGraph, meta_model, trace
from atb_models.layers.mlp import Mlp, MoE
from atb_models.models.config_reader import load_model_config
from atb_models.models.decoder import Decoder
from tests.graph.real import meta_like, real_caches, real_model, real_step, watch


@pytest.fixture(scope="module")
def model(demo: Path) -> Decoder:
    return real_model(demo, torch.float16)


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def backend(request: pytest.FixtureRequest) -> None:
    ops.bind(request.param)


def on_meta(folder: Path) -> OpGraph:
    return trace(meta_model(load_model_config(folder), torch.float16), meta_like(real_step()))


def test_nothing_happens_outside_operations(model: Decoder, demo: Path) -> None:
    watched = watch(model, real_step(), real_caches(model))
    graph = on_meta(demo)
    assert not graph.stray and not watched.stray
    assert [name for name, _ in watched.peaks] == [node.op for node in graph.nodes]


def test_nor_where_experts_are_counted(model: Decoder) -> None:
    moe = model.layers[1].mlp
    assert isinstance(moe, MoE)
    counter = moe.count_tokens()
    try:
        assert not watch(model, real_step(), real_caches(model)).stray
    finally:
        moe.counter_E = None
    assert counter.sum() == 302 * 4


def in_place(x: Tensor) -> Tensor:
    return x.mul_(1)


STRAYS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "add": (lambda x: x + 0, "aten.add.Tensor"),
    "cast": (lambda x: x.float().half(), "aten._to_copy.default"),
    "contiguous": (lambda x: x.t().contiguous().t(), "aten.clone.default"),
    "clone": (lambda x: x.clone(), "aten.clone.default"),
    "in place": (in_place, "aten.mul_.Tensor"),
}


def patch_dense_layer(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    """The feed-forward of layer 0 and the shared experts of the others first do `change` to their input."""
    forward = Mlp.forward
    monkeypatch.setattr(Mlp, "forward", lambda self, x_TH: forward(self, change(x_TH)))


@pytest.mark.parametrize("kind", STRAYS)
def test_stray_work_is_found(kind: str, model: Decoder, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, function = STRAYS[kind]
    patch_dense_layer(monkeypatch, change)
    assert function in watch(model, real_step(), real_caches(model)).stray
    stray = on_meta(demo).stray
    assert f"{function} in layers.0.mlp" in stray and f"{function} in layers.3.mlp.shared" in stray


def read_on_host(x: Tensor) -> Tensor:
    x[0, 0].item()
    return x


def constant(x: Tensor) -> Tensor:
    torch.tensor([1])
    return x


@pytest.mark.parametrize(
    ("change", "function"), [(read_on_host, "aten._local_scalar_dense.default"), (constant, "aten.lift_fresh.default")]
)
def test_stray_reads_and_new_tensors_are_found(
    change: Callable[[Tensor], Tensor], function: str, model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_dense_layer(monkeypatch, change)
    stray = watch(model, real_step(), real_caches(model)).stray
    assert stray and set(stray) == {function}


def test_views_are_no_work(model: Decoder, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch_dense_layer(monkeypatch, lambda x: x.view(-1, 2, 64).transpose(0, 1).transpose(0, 1).flatten(1)[:, :])
    assert not watch(model, real_step(), real_caches(model)).stray
    assert not on_meta(demo).stray
