"""A recording of real steps: every call is there, and every millisecond is where it was spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import pytest
import torch

from atb_models import LLM, SamplingParams, ops
from atb_models.graph import meta_model, meta_step, trace
from atb_models.ops.cost import Cost
from atb_models.ops.table import TABLE
from atb_models.ops.top_logits import greedy_logits
from atb_models.plan.roofline import Arithmetic, Times
from atb_models.profiler import Profile, Recorder
from tests.tiny import write_checkpoint

PROMPTS = [[5] * 30, [6] * 7, [7, 8, 9]]
GREEDY = [SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for n in (5, 3, 4)]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder)
    # the third request enters while the others generate: a mixed step
    with LLM(folder, dtype="fp32", device="cpu", max_batch_size=2, block_size=16, prefix_cache=False) as llm:
        llm.generate(PROMPTS, GREEDY)
        yield llm


def recorded(llm: LLM, **options: Any) -> Profile:
    with Recorder(llm._runner, **options) as recorder:
        llm.generate(PROMPTS, GREEDY)
    return recorder.profile


def test_parts_add_up_to_the_wall_time(llm: LLM) -> None:
    params = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    llm.reset_timings()
    with Recorder(llm._runner) as recorder:
        started = perf_counter()
        llm.generate(PROMPTS, params)
        wall = perf_counter() - started
    profile = recorder.profile
    assert sum(profile.split().values()) == pytest.approx(wall, rel=0.05)
    assert min(profile.split().values()) > 0
    assert profile.model_s < llm.metrics()["run_s"]
    assert profile.operations_s == pytest.approx(sum(total.seconds for total in profile.totals.values()))


@pytest.mark.parametrize("place", ["operations", "between operations", "outside the model", "recorder"])
def test_time_is_counted_where_it_is_spent(llm: LLM, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """30 ms more in each step, in one of four places, are the most of what a step takes."""

    def slow(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (sleep(0.03), function(*args))[1]

    embedding = TABLE["Embedding"]
    if place == "operations":
        monkeypatch.setattr(embedding, "run", slow(embedding.run))
    elif place == "recorder":
        monkeypatch.setattr(embedding, "cost", slow(embedding.cost))
    elif place == "between operations":
        layer = llm._runner.model.layers[0]
        monkeypatch.setattr(layer, "forward", slow(layer.forward))
    else:
        monkeypatch.setattr(llm, "on_step", lambda *_: sleep(0.03))
    profile = recorded(llm)
    split = profile.split()
    assert split[place] >= 0.03 * len(profile.steps)
    assert max(split, key=lambda name: split[name]) == place


def test_calls_and_flops_are_the_traced_graphs(llm: LLM) -> None:
    lens: list[tuple[str, list[int], list[int]]] = []
    model = llm._runner.model

    def note(_: Any, args: tuple[Any, ...]) -> None:
        queries, kv_lens = args[0].query_lens, args[0].kv_lens  # no prompt of PROMPTS has a chunk of one token
        kind = "decode" if max(queries) == 1 else "mixed" if min(queries) == 1 else "prefill"
        lens.append((kind, queries, kv_lens))

    hook = model.register_forward_pre_hook(note)
    try:
        profile = recorded(llm)
    finally:
        hook.remove()
    calls: Counter[tuple[str, str, str]] = Counter()
    flops: Counter[tuple[str, str, str]] = Counter()
    meta = meta_model(model.config, torch.float32)
    for kind, query_lens, kv_lens in lens:
        for node in trace(meta, meta_step(query_lens, kv_lens, 16, top_logits=greedy_logits())).nodes:
            calls[kind, node.op, node.module] += 1
            flops[kind, node.op, node.module] += node.cost.flops
    seen = {place[:3]: total for place, total in profile.totals.items()}
    assert {place: total.calls for place, total in seen.items()} == calls
    assert {place: total.cost.flops for place, total in seen.items()} == flops
    assert [(step.kind, step.tokens, step.sequences, step.longest_kv) for step in profile.steps] == [
        (kind, sum(query_lens), len(query_lens), max(kv_lens)) for kind, query_lens, kv_lens in lens
    ]
    assert {step.kind for step in profile.steps} == {"prefill", "mixed", "decode"}


@pytest.mark.parametrize(
    ("prompts", "tokens", "steps"),
    [
        ([[5]], 2, [("prefill", 1), ("decode", 1)]),
        ([[5], [6]], 2, [("prefill", 2), ("decode", 2)]),
        ([[5] * 33], 2, [("prefill", 32), ("prefill", 1), ("decode", 1)]),  # the last chunk has one token
        # the third enters where the others generate
        ([[5], [6, 7], [8]], [1, 3, 2], [("prefill", 3), ("mixed", 2), ("decode", 2)]),
    ],
)
def test_kind_of_a_step_with_a_single_prompt_token(
    tmp_path: Path, prompts: list[list[int]], tokens: int | list[int], steps: list[tuple[str, int]]
) -> None:
    write_checkpoint(tmp_path)
    lengths = [tokens] * len(prompts) if isinstance(tokens, int) else tokens
    params = [SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for n in lengths]
    small: dict[str, Any] = {"max_batch_size": 2, "max_prefill_tokens": 32, "block_size": 16, "prefix_cache": False}
    with LLM(tmp_path, dtype="fp32", device="cpu", **small) as llm:
        with Recorder(llm._runner) as recorder:
            llm.generate(prompts, params)
        assert "run" not in vars(llm._runner)
    assert [(step.kind, step.tokens) for step in recorder.profile.steps] == steps


def test_each_call_is_priced_in_the_dtype_it_computes_in(llm: LLM) -> None:
    seen = set()

    def price(cost: Cost, arithmetic: Arithmetic) -> Times:
        seen.add(arithmetic)
        return Times(compute=cost.flops * 1e-12, total=cost.flops * 1e-12)

    profile = recorded(llm, price=price)
    assert seen == {(torch.float32, torch.float32)}
    for total in profile.totals.values():
        assert total.roofline_s == pytest.approx(total.cost.flops * 1e-12)
        assert total.lost_s == pytest.approx(total.seconds - (total.roofline_s or 0))


def test_trace_keeps_whole_steps_and_the_sums_all(llm: LLM) -> None:
    whole = recorded(llm)
    first_calls = [number for number, call in enumerate(whole.calls) if call.op == "RopeTables"]
    part = recorded(llm, traced_calls=first_calls[2] + 1)
    assert (part.traced_steps, len(part.calls)) == (2, first_calls[2])
    assert len(part.steps) == len(whole.steps) == whole.traced_steps
    assert sum(total.calls for total in part.totals.values()) == len(whole.calls)


def test_a_composite_operation_is_one_call(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, to_float = TABLE["Embedding"], TABLE["ToFloat"]
    run = embedding.run
    monkeypatch.setattr(embedding, "run", lambda *args: to_float(run(*args)))
    profile = recorded(llm)
    calls = Counter(call.op for call in profile.calls)
    assert calls["Embedding"] == len(profile.steps)
    assert calls["ToFloat"] == (0 if greedy_logits() else len(profile.steps)), "the head's alone"


def test_an_error_in_a_step_puts_everything_back(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llm._runner.model

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TABLE["SelectRows"], "run", fail)
        before = [operation.run for operation in ops.operations()]
        with pytest.raises(KeyboardInterrupt):
            recorded(llm)
        assert [operation.run for operation in ops.operations()] == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert len(recorded(llm).steps) > 0


def test_a_device_is_waited_for_around_each_operation(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr(torch.cpu, "synchronize", lambda: waits.append(0))
    profile = recorded(llm)
    assert len(waits) == 2 * len(profile.calls) + len(profile.steps)


def test_answers_are_the_same(llm: LLM) -> None:
    before = [output.token_ids for output in llm.generate(PROMPTS, GREEDY)]
    with Recorder(llm._runner):
        assert [output.token_ids for output in llm.generate(PROMPTS, GREEDY)] == before
