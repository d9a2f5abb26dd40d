"""What a step calls, and how graphs, costs and profiles show it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from atb_models import LLM, SamplingParams, ops
from atb_models.graph import meta_model, meta_step, trace
from atb_models.graph.labels import weights_read
from atb_models.models.config_reader import load_model_config
from atb_models.models.decoder import Decoder, DecoderLayer
from atb_models.ops.native import library as loader
from atb_models.ops.table import in_parts
from atb_models.profiler import Recorder
from tests.tiny import write_checkpoint


class Called(TorchDispatchMode):
    """Notes torch's functions, and the library's by `noting`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))

    def noting(self, name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            self.names.append(name)
            return function(*args)

        return call


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Called:
    """What notes the functions of the library, too."""
    level = loader.active().level
    assert level is not None
    library, called = loader.load(level.name), Called()
    functions = {name: value for name, value in vars(library).items() if hasattr(value, "argtypes")}
    assert len(functions) > 15
    for name, function in functions.items():
        monkeypatch.setattr(library, name, called.noting(name, function))
    return called


def calls_of(module: type, called: Called, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Of each forward of a module of that kind, from now on."""
    every: list[list[str]] = []
    forward: Callable[..., object] = module.forward

    def noted(self: object, *args: object) -> object:
        called.names = []
        with called:
            result = forward(self, *args)
        every.append(called.names)
        called.names = []
        return result

    monkeypatch.setattr(module, "forward", noted)
    return every


@pytest.fixture(params=["demo", "qwen3"])
def folder(request: pytest.FixtureRequest, demo: Path, tmp_path: Path) -> Path:
    """The embedded checkpoint, and a family that norms heads."""
    if request.param == "demo":
        return demo
    write_checkpoint(tmp_path, family=request.param)
    return tmp_path


TOKENS = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)


def test_a_greedy_step_is_one_call(folder: Path, called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the library; torch makes the memory of logits and keys, and does nothing else."""
    with LLM(folder, device="cpu", kv_blocks=4) as llm:
        llm.generate([[5, 6, 7]], TOKENS)  # what is made once
        steps = calls_of(Decoder, called, monkeypatch)
        llm.generate([[5, 6, 7]], TOKENS)
    assert steps == [["aten.empty.memory_format", "aten.empty.memory_format", "decoder"]] * 4


def test_a_layer_in_parts_is_two_calls(folder: Path, called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is in long steps and beside other ranks; torch makes the memory of the results, and does nothing else."""
    layers = calls_of(DecoderLayer, called, monkeypatch)
    with LLM(folder, device="cpu", kv_blocks=4) as llm, in_parts(ops.decoder):
        llm.generate([[5, 6, 7]], TOKENS)
    count = load_model_config(folder).num_hidden_layers
    made = "aten.empty_like.default"
    first = [made, "attention_sublayer", made, made, "feed_forward_sublayer"]
    assert layers[-count:] == [first, *[[made, *first]] * (count - 1)]


def test_an_interrupt_ends_the_run_after_the_step(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is given up, and the next one finds everything as it was."""
    level = loader.active().level
    assert level is not None
    library, calls = loader.load(level.name), 0
    run = library.decoder

    def interrupted(*args: object) -> object:
        nonlocal calls
        calls += 1
        status = run(*args)
        if calls == 3:
            signal.raise_signal(signal.SIGINT)
        return status

    with LLM(demo, device="cpu", kv_blocks=4) as llm:
        expected = llm.generate([[5, 6, 7]], TOKENS)[0].token_ids
        monkeypatch.setattr(library, "decoder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([[5, 6, 7]], TOKENS)
        assert calls == 3 and llm.metrics()["running"] == 0
        assert llm.generate([[5, 6, 7]], TOKENS)[0].token_ids == expected


def test_graphs_and_profiles_show_the_parts(demo: Path) -> None:
    """Of short steps, too, which run as one operation before and after that."""
    assert not ops.decoder.is_shown
    with LLM(demo, device="cpu", kv_blocks=4) as llm:
        expected = llm.generate([[5, 6, 7]], TOKENS)[0].token_ids
        weights = llm._runner.model._weights
        assert weights is not None and weights.bound is not None
        weights.bound = None
        with Recorder(llm._runner) as recorder:
            assert llm.generate([[5, 6, 7]], TOKENS)[0].token_ids == expected
        assert weights.bound is None and ops.decoder.is_served
        assert llm.generate([[5, 6, 7]], TOKENS)[0].token_ids == expected
        assert weights.bound is not None
    ops.bind("cpu")
    graph = trace(meta_model(load_model_config(demo), torch.float16), meta_step([1], [70], 16, top_logits=1))
    outside = {"RopeTables", "Embedding", "AddRmsNorm", "Linear", "TopLogits"}
    assert graph.counts().keys() == outside | {"AttentionSublayer", "FeedForwardSublayer"}
    assert {call.op for call in recorder.profile.calls} == graph.counts().keys() | {"SelectRows"}  # of the prompt
    assert {call.module for call in recorder.profile.calls} >= {"layers.0", "layers.1", "embed", "lm_head"}


def test_sublayers_are_one_node_and_one_call(demo: Path) -> None:
    config = load_model_config(demo)
    ops.bind("cpu")
    graph = trace(meta_model(config, torch.float16), meta_step([40, 1], [40, 70], 16))
    layers, sublayers = config.num_hidden_layers, {"AttentionSublayer", "FeedForwardSublayer"}
    assert all(graph.counts()[name] == layers for name in sublayers) and graph.stray == ()
    outside = {"RopeTables", "Embedding", "AddRmsNorm", "SelectRows", "Linear", "ToFloat"}
    assert graph.counts().keys() - sublayers == outside
    attention, feed_forward, second = (node for node in graph.nodes if node.op in sublayers and node.index < 5)
    assert {node.backend for node in (attention, feed_forward)} == {"cpu"}
    assert (attention.module, feed_forward.module, second.module) == ("layers.0", "layers.0", "layers.1")
    assert set(attention.writes) == {"layers.0.k_PSMD", "layers.0.v_PSMD"}
    assert [value.node for value in feed_forward.inputs[:2]] == [attention.index] * 2
    assert all(output.shape == (41, config.hidden_size) for output in feed_forward.outputs)
    routed = next(node for node in graph.nodes if node.module == "layers.1" and node.op == "FeedForwardSublayer")
    assert routed.peak_bytes > 41 * config.num_experts_per_tok * 64 * 2, "the library's workspace is counted"
    ops.bind("reference")
    parts = trace(meta_model(config, torch.float16), meta_step([40, 1], [40, 70], 16))
    assert sum(node.cost.flops for node in graph.nodes) == sum(node.cost.flops for node in parts.nodes)
    assert graph.cost.read < parts.cost.read and graph.cost.written < parts.cost.written
    assert weights_read(graph) == pytest.approx(weights_read(parts), rel=1e-9)
    with LLM(demo, device="cpu", kv_blocks=4) as llm, Recorder(llm._runner) as recorder:
        llm.prompt_logits([5, 6, 7])
    called = [call.op for call in recorder.profile.calls]
    assert all(called.count(name) == layers for name in sublayers)
    assert set(called) - sublayers == outside - {"SelectRows"}, "all logits are wanted"


def test_an_int8_cache_is_written_and_read_in_the_same_call(demo: Path) -> None:
    """With no more workspace; the planes of scales are written too, and the cost counts the bytes of the cache."""
    ops.bind("cpu")
    int8, plain = (
        trace(meta_model(load_model_config(demo), torch.float16, kv_dtype=stored), meta_step([40], [40], 16))
        for stored in (torch.int8, None)
    )
    assert int8.counts() == plain.counts() and int8.stray == ()
    node, other = (next(node for node in graph.nodes if node.op == "AttentionSublayer") for graph in (int8, plain))
    assert set(node.writes) == {f"layers.0.{name}_PSMD" for name in ("k", "v", "k_scale", "v_scale")}
    assert node.backend == "cpu" and node.peak_bytes == other.peak_bytes
    vectors = 2 * 40 * 8  # keys and values of as many tokens and heads, 16 wide
    assert other.cost.written - node.cost.written == vectors * (2 * 16 - 16 - 4)
    assert node.cost.flops - other.cost.flops == vectors * 16
    ops.bind("reference")
    parts = trace(meta_model(load_model_config(demo), torch.float16, kv_dtype=torch.int8), meta_step([40], [40], 16))
    assert sum(node.cost.flops for node in int8.nodes) == sum(node.cost.flops for node in parts.nodes)
    with LLM(demo, device="cpu", kv_blocks=4, kv_dtype="int8") as llm, Recorder(llm._runner) as recorder:
        llm.prompt_logits([5, 6, 7])
        assert llm._runner.model.layers[0]._attention_sublayer.bound is not None
    assert not {"RopeAndCache", "PagedAttention", "Rope"} & {call.op for call in recorder.profile.calls}


def test_norms_of_heads_are_made_in_the_same_call(tmp_path: Path) -> None:
    """With the FLOPs of the parts, whose norms they are."""
    ops.bind("cpu")
    write_checkpoint(tmp_path, family="qwen3", num_key_value_heads=2)
    config = load_model_config(tmp_path)
    graph = trace(meta_model(config, torch.float16), meta_step([40, 1], [40, 70], 16))
    assert graph.stray == () and "RmsNorm" not in graph.counts()
    node = next(node for node in graph.nodes if node.op == "AttentionSublayer")
    norms = {f"layers.0.attn.qk_norm.{role}.weight" for role in ("q", "k")}
    assert norms < {value.name for value in node.inputs}
    ops.bind("reference")
    parts = trace(meta_model(config, torch.float16), meta_step([40, 1], [40, 70], 16))
    assert parts.counts()["RmsNorm"] == 1 + 2 * config.num_hidden_layers
    assert sum(node.cost.flops for node in graph.nodes) == sum(node.cost.flops for node in parts.nodes)
    assert weights_read(graph) == pytest.approx(weights_read(parts), rel=1e-9)


def test_int8_activations_are_made_in_the_same_call(demo: Path) -> None:
    """With the FLOPs of the parts, which make them too."""
    ops.bind("cpu")
    config = load_model_config(demo)
    graph = trace(meta_model(config, torch.float16, quantize="w8a8_dynamic"), meta_step([40], [40], 16))
    assert {"AttentionSublayer", "FeedForwardSublayer"} < graph.counts().keys() and graph.stray == ()
    assert not {"QuantLinear", "QuantMoeExperts"} & graph.counts().keys()
    ops.bind("reference")
    parts = trace(meta_model(config, torch.float16, quantize="w8a8_dynamic"), meta_step([40], [40], 16))
    assert sum(node.cost.flops for node in graph.nodes) == sum(node.cost.flops for node in parts.nodes)
    with LLM(demo, device="cpu", kv_blocks=4, quantize="w8a8_dynamic") as llm, Recorder(llm._runner) as recorder:
        assert llm.prompt_logits([5, 6, 7]).isfinite().all()
        assert all(layer._feed_forward_sublayer.bound is not None for layer in llm._runner.model.layers)
    assert {"AttentionSublayer", "FeedForwardSublayer"} < {call.op for call in recorder.profile.calls}
