"""Records real steps: the time and the cost of each operation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from time import perf_counter_ns
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from atb_models.engine.model_runner import ModelRunner
from atb_models.engine.scheduler import Row
from atb_models.graph.paths import ModulePaths
from atb_models.machine.device import device_module
from atb_models.ops.cost import Cost
from atb_models.ops.step import StepInput
from atb_models.ops.table import Body, Op, recorded
from atb_models.ops.weight import Weight, tensors_of
from atb_models.plan.roofline import Arithmetic, Times, arithmetic_of
from atb_models.profiler.profile import Call, CallKey, Least, Profile, StepRecord, Total

Price = Callable[[Cost, Arithmetic], Times]  # an operation at the roofline

# Most calls that are kept one by one; trace viewers cannot show more.
TRACED_CALLS = 50_000


class Recorder:
    """A context manager: within it every operation in the steps of `runner` is timed; `profile` has the results.

    On an asynchronous device each operation is waited for, before and after. Costs are computed between the measured
    intervals. Steps that end with an error are left out.
    """

    def __init__(self, runner: ModelRunner, price: Price | None = None, traced_calls: int = TRACED_CALLS) -> None:
        assert not runner.config.graph_capture, "a replayed step calls no operation"
        self._runner, self._model, self._price, self._room = runner, runner.model, price, traced_calls
        self._synchronize: Callable[[], None] = device_module(runner.group.device.type).synchronize
        self._paths = _TimedPaths(self._model)
        self._open = ExitStack()
        self._steps: list[StepRecord] = []
        self._totals: defaultdict[CallKey, Total] = defaultdict(Total)
        self._calls: list[Call] = []
        self._traced_steps = 0
        self._new: list[Call] = []  # calls of the running step
        self._kind = ""  # of the running step
        self._began = self._step_began = self._own_ns = self._wall_ns = 0
        self._inside = False  # within an operation: operations that its body calls are part of it

    def __enter__(self) -> Recorder:
        with ExitStack() as stack:
            stack.enter_context(self._paths)
            hooks = (
                self._model.register_forward_pre_hook(self._enter_step, prepend=True),
                self._model.register_forward_hook(self._leave_step),
            )
            for hook in hooks:
                stack.callback(hook.remove)
            self._runner.run = self._run  # type: ignore[method-assign]
            stack.callback(delattr, self._runner, "run")  # the class's method shows again
            stack.enter_context(recorded(self._call))
            self._open = stack.pop_all()
        self._began = perf_counter_ns()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._wall_ns = perf_counter_ns() - self._began
        self._open.close()

    @property
    def profile(self) -> Profile:
        """The results of the steps so far; the wall time ends when the recording is closed."""
        return Profile(self._wall_ns, tuple(self._steps), dict(self._totals), tuple(self._calls), self._traced_steps)

    def _run(self, rows: Sequence[Row], top_logits: int = 0) -> Tensor:
        """In place of the runner's `run`: only its rows tell the last token of a prompt from one that generates."""
        self._kind = kind_of([row.is_prefill for row in rows])
        return type(self._runner).run(self._runner, rows, top_logits)

    def _enter_step(self, *_: object) -> None:
        self._new.clear()
        self._own_ns = self._paths.ns = 0
        self._step_began = perf_counter_ns()

    def _leave_step(self, _: object, args: tuple[Any, ...], result: object) -> None:
        self._synchronize()
        entered = perf_counter_ns()
        step: StepInput = args[0]
        kind = self._kind
        for call in self._new:
            place = CallKey(kind, call.op, call.module, call.backend)
            self._totals[place].count(call)
        operations_ns = sum(call.end - call.start for call in self._new)
        if self._traced_steps == len(self._steps) and len(self._calls) + len(self._new) <= self._room:
            self._calls += self._new
            self._traced_steps += 1
        tokens, sequences, longest = sum(step.query_lens), len(step.query_lens), max(step.kv_lens)
        start, end = self._step_began - self._began, perf_counter_ns() - self._began
        own_ns = self._own_ns + self._paths.ns + end + self._began - entered
        self._steps.append(StepRecord(kind, tokens, sequences, longest, start, end, operations_ns, own_ns))

    def _call(self, op: Op, run: Body, args: tuple[Any, ...]) -> Any:
        if self._inside or not self._paths.running:
            return run(*args)
        entered = perf_counter_ns()
        operands = op.operands(*args)
        named = tensors_of(operands)
        module = self._paths.current(tuple(tensor for tensor in named.values() if type(tensor) is nn.Parameter))
        self._inside = True
        self._synchronize()
        started = perf_counter_ns()
        try:
            result = run(*args)
            self._synchronize()
            ended = perf_counter_ns()
        finally:
            self._inside = False
        cost = op.cost(result, *args)
        least = self._least(op, cost, named, operands)
        shapes = tuple(tuple(value.shape) for value in operands.values() if isinstance(value, (Tensor, Weight)))
        times = started - self._began, ended - self._began
        self._new.append(Call(op.name, module, op.backend, *times, cost, least, shapes))
        self._own_ns += started - entered + perf_counter_ns() - ended
        return result

    def _least(self, op: Op, cost: Cost, named: Mapping[str, Tensor], operands: Mapping[str, Any]) -> Least | None:
        if self._price is None:
            return None
        dtypes = {name: tensor.dtype for name, tensor in named.items()}
        times = self._price(cost, arithmetic_of(op.name, dtypes, operands))
        return Least(times.total, times.limit)


class _TimedPaths(ModulePaths):
    """Measures its own hooks: `ns` is their time since it was last set to 0."""

    ns = 0

    def _entering(self, name: str) -> Any:
        return self._timed(super()._entering(name))

    def _leave(self, *args: object) -> None:
        self._timed(super()._leave)(*args)

    def _timed(self, hook: Callable[..., object]) -> Callable[..., None]:
        def timed(*args: object) -> None:
            started = perf_counter_ns()
            hook(*args)
            self.ns += perf_counter_ns() - started

        return timed


def kind_of(chunks: Sequence[bool]) -> str:
    """The kind of a step. chunks: for each row, whether it is a chunk of a prompt; the other rows generate."""
    if all(chunks):
        return "prefill"
    return "mixed" if any(chunks) else "decode"
