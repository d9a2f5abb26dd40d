"""Recording a graph: the model's forward on meta tensors, each operation seen as it is called."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from atb_models.graph.graph import Node, OpGraph, Value
from atb_models.graph.memory import StorageMode
from atb_models.graph.meta import meta_caches
from atb_models.graph.paths import ModulePaths
from atb_models.models.decoder import Decoder
from atb_models.ops.attention import letters
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.step import StepInput
from atb_models.ops.table import Body, Op, recorded
from atb_models.ops.weight import Weight, tensors_of

BLOCK_SIZE = 128
# Name of a tensor that was made outside any operation.
STRAY = "?"


def trace(model: Decoder, step: StepInput, caches: list[LayerCache] | None = None) -> OpGraph:
    """Run the model's own forward on meta tensors and record it.

    The operations show the backend that is bound (`ops.bind`). `caches`: None makes those that the step needs, in
    blocks of 128. Raises ValueError for a model or a step with values (see meta.py for those without).
    """
    if not (model.inv_freq_D.is_meta and step.token_ids_T.is_meta):
        raise ValueError("a trace needs a model and a step on the meta device; graph/meta.py makes them")
    # not inference mode: there torch hides the parts of its composite functions, and with them their workspace
    with torch.inference_mode(False), torch.no_grad():
        if caches is None:
            caches = meta_caches(model, sum(-(-length // BLOCK_SIZE) for length in step.kv_lens), BLOCK_SIZE)
        recorder = _Recorder(model, step, caches)
        with recorder.paths, recorder.memory, recorded(recorder.call):
            model(step, caches)
    build, method = model.layers[0].build, model.layers[0].build.quantization
    return OpGraph(
        nodes=tuple(recorder.nodes),
        stray=tuple(recorder.stray),
        query_lens=tuple(step.query_lens),
        kv_lens=tuple(step.kv_lens),
        dtype=build.dtype,
        rank=build.tensor.rank,
        size=build.tensor.size,
        quantize=method.name if method is not None and method.has_integers else None,
        kv_dtype=build.kv_dtype,
    )


class _Recorder:
    """Makes a node of each call. A value is known by its storage, so views of it are the same value."""

    def __init__(self, model: Decoder, step: StepInput, caches: list[LayerCache]) -> None:
        self.nodes: list[Node] = []
        self.stray: list[str] = []
        self.paths = ModulePaths(model)
        named = named_tensors(model, step, caches)
        self.memory = StorageMode(list(named.values()), self._work)
        self._names = {self.memory.identity(tensor): name for name, tensor in reversed(named.items())}
        self._writers: dict[int, int] = {}
        self._inside = False

    def call(self, op: Op, run: Body, args: tuple[Any, ...]) -> Any:
        if self._inside:  # an operation whose body calls others is one node
            return (op.shape or run)(*args)
        index = len(self.nodes)
        operands = op.operands(*args)
        inputs = tensors_of(operands)
        seen = tuple(self._value(tensor, argument) for argument, tensor in inputs.items())
        seen = tuple(_as_weight(value, operands.get(value.argument)) for value in seen)
        self.memory.peak = self.memory.live
        self.memory.written.clear()
        self._inside = True
        try:
            result = (op.shape or run)(*args)
        finally:
            self._inside = False
        given = {self.memory.identity(tensor): value.name for tensor, value in zip(inputs.values(), seen, strict=True)}
        written = {identity: name for identity, name in given.items() if identity in self.memory.written}
        self._writers.update(dict.fromkeys(written, index))
        self.nodes.append(
            Node(
                index=index,
                op=op.name,
                module=self.paths.current(tuple(inputs.values())),
                inputs=seen,
                outputs=self._results(index, result),
                writes=tuple(written.values()),
                options={name: value for name, value in operands.items() if _is_plain(value)},
                cost=op.cost(result, *args),
                backend=op.backend,
                peak_bytes=self.memory.peak,
            )
        )
        return result

    def _work(self, function: str) -> None:
        if not self._inside:
            self.stray.append(f"{function} in {self.paths.current(()) or 'the decoder'}")

    def _value(self, tensor: Tensor, argument: str) -> Value:
        identity = self.memory.identity(tensor)
        name, writer = self._names.get(identity, STRAY), self._writers.get(identity)
        return Value(name, argument, tuple(tensor.shape), tensor.dtype, writer)

    def _results(self, index: int, result: Any) -> tuple[Value, ...]:
        """Name what came out. A result in an input's memory is that input written again, and a value of its own."""
        results = result if isinstance(result, tuple) else () if result is None else (result,)
        for place, tensor in enumerate(results):
            identity = self.memory.identity(tensor)
            self._names[identity] = f"%{index}" if len(results) == 1 else f"%{index}.{place}"
            self._writers[identity] = index
        return tuple(self._value(tensor, "") for tensor in results)


def named_tensors(model: Decoder, step: StepInput, caches: list[LayerCache]) -> dict[str, Tensor]:
    """Everything that is there before the step runs, a model's plain attributes (the expert counters) included."""
    named: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for path, module in model.named_modules():
        named |= {f"{path}.{name}": value for name, value in vars(module).items() if isinstance(value, Tensor)}
    named |= {name: value for name, value in vars(step).items() if isinstance(value, Tensor)}
    for layer, cache_of_layer in enumerate(caches):
        named |= {f"layers.{layer}.{name}_{letters(name, plane)}": plane for name, plane in cache_of_layer.items()}
    return named


def _as_weight(value: Value, operand: object) -> Value:
    """A stored weight by its own shape, not by that of the tensor that holds it."""
    return replace(value, shape=operand.shape) if isinstance(operand, Weight) else value


def _is_plain(arg: object) -> bool:
    return isinstance(arg, (int, float, str, list))
