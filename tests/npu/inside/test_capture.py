"""Decode steps replayed as graphs: the same answers as launched operator by operator, and nothing left to launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_npu.npu._npugraph_handlers import npugraph_handler

from atb_models import LLM, SamplingParams
from atb_models.engine.graph_capture import decide_capture
from atb_models.errors import AtbError, ConfigError
from atb_models.launcher.main import main
from atb_models.layers.storage import METHODS
from tests.models.quantized.modelslim.writer import Form, every, write
from tests.npu.soft import counts
from tests.npu.soft.demands import ContractError
from tests.tiny import write_checkpoint

LAYERS = 3
# of several lengths, some of which end a block soon
PROMPTS = [[1], [2, 3, 5, 7], [4] * 60 + [9] * 66, list(range(10, 137)), list(range(30))]
SIZES: dict[str, Any] = {"max_batch_size": 6, "max_seq_len": 300, "max_prefill_tokens": 64, "prefix_cache": False}
Answers = tuple[list[list[int]], list[Tensor]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, hidden_size=256, num_attention_heads=2, num_key_value_heads=2)
    return folder


@pytest.fixture(scope="module")
def captured(folder: Path) -> LLM:
    with LLM(folder, device="npu", **SIZES) as llm:
        yield llm


@pytest.fixture(scope="module")
def launched(folder: Path) -> LLM:
    with LLM(folder, device="npu", graph_capture=False, **SIZES) as llm:
        yield llm


def run(llm: LLM, prompts: list[list[int]], tokens: int = 6) -> Answers:
    """-> answers, and the logits of each step."""
    logits: list[Tensor] = []
    llm.on_step = lambda rows, logits_LV, _: logits.append(logits_LV.to("cpu", copy=True))
    counts.reset()
    outputs = llm.generate(prompts, SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True))
    return [output.token_ids for output in outputs], logits


def same(one: Answers, other: Answers) -> bool:
    """Answers and logits; sums of other row counts may be made in another order."""
    close = [a.shape == b.shape and torch.allclose(a, b, atol=2e-2) for a, b in zip(one[1], other[1], strict=True)]
    return one[0] == other[0] and all(close)


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_answers_are_those_of_launched_steps(captured: LLM, launched: LLM, batch: int) -> None:
    """Prompts of 64 tokens a step come in chunks, beside rows that decode."""
    answers = run(captured, PROMPTS[-batch:])
    assert counts.GRAPHS["replayed"] > 0
    assert same(answers, run(launched, PROMPTS[-batch:]))
    assert counts.GRAPHS["replayed"] == 0


def test_bf16(folder: Path) -> None:
    results = []
    for graph_capture in (True, False):
        with LLM(folder, device="npu", dtype="bf16", graph_capture=graph_capture, **SIZES) as llm:
            results.append(run(llm, PROMPTS[:3]))
    assert same(*results)


@pytest.mark.parametrize("quantize", [*METHODS, "static"])
def test_weights_of_integers(folder: Path, tmp_path: Path, quantize: str) -> None:
    """Operations on them take no value to the host; static scales of experts are spread over rows on the device."""
    results, stored = [], folder
    if quantize == "static":
        stored = tmp_path
        write(stored, folder, Form("w8a8", every("W8A8"), deq_scale="int64"))
    method = None if quantize == "static" else quantize
    for graph_capture in (True, False):
        with LLM(stored, device="npu", graph_capture=graph_capture, quantize=method, **SIZES) as llm:
            results.append(run(llm, PROMPTS[:3]))
            assert (counts.GRAPHS["replayed"] > 0) == graph_capture
            assert set(counts.waits()) <= {"copy to the host"}
    assert same(*results)


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_an_int8_cache(folder: Path, batch: int) -> None:
    """Where scales go is made anew in every replay; lengths are updated, as those of floats are."""
    results = []
    for graph_capture in (True, False):
        with LLM(folder, device="npu", graph_capture=graph_capture, kv_dtype="int8", **SIZES) as llm:
            results.append(run(llm, PROMPTS[-batch:]))
            assert (counts.GRAPHS["replayed"] > 0) == graph_capture
            assert counts.GRAPHS["updated"] == counts.GRAPHS["replayed"] * LAYERS
            assert set(counts.waits()) <= {"copy to the host"}
    assert same(*results)


def test_preempted_sequences(folder: Path, launched: LLM) -> None:
    with LLM(folder, device="npu", kv_blocks=4, **SIZES) as llm:
        answers, _ = run(llm, PROMPTS[2:], 8)
        assert llm.metrics()["preemptions"] > 0
        assert llm.metrics()["total_blocks"] == 4
    assert answers == run(launched, PROMPTS[2:], 8)[0]


def test_two_ranks(folder: Path, launched: LLM) -> None:
    """Their collectives are in the graphs."""
    with LLM(folder, device="npu", tp=2, **SIZES) as llm:
        answers = run(llm, PROMPTS[:3])
        assert counts.GRAPHS["replayed"] > 0
        assert counts.OPERATORS["c10d::allreduce_"] % (2 * LAYERS) == 0
    assert same(answers, run(launched, PROMPTS[:3]))


def test_what_a_replayed_step_does(captured: LLM) -> None:
    """One copy to the device, one replay, one update a layer, one copy back; no operator of the model is launched."""
    before = captured.metrics()["steps"]
    captured.on_step = None
    captured.generate([[1, 2, 3]] * 3, SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
    eager = dict(counts.OPERATORS)
    counts.reset()
    captured.generate([[5]] * 5, SamplingParams(max_tokens=8, temperature=0, ignore_eos=True))  # a token each: decodes
    steps = captured.metrics()["steps"] - before - 2
    assert eager and steps == 8
    assert counts.GRAPHS == {"replayed": steps, "updated": steps * LAYERS}
    assert counts.COPIES == {"to_device": steps, "to_host": steps}
    assert counts.waits() == {"copy to the host": steps}
    # the copies, and sampling
    finite = {"aten::gather", "aten::isfinite", "aten::rsub.Scalar", "aten::where.self"}  # whether it chose a number
    assert set(counts.OPERATORS) == {"aten::copy_", "aten::_to_copy", "aten::argmax.out"} | finite


def test_no_sequence_has_the_spare_block(captured: LLM) -> None:
    spare = captured.metrics()["total_blocks"]
    tables: list[int] = []
    captured.on_step = lambda rows, *_: tables.extend(block for row in rows for block in row.seq.block_table)
    captured.generate(PROMPTS, SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
    assert tables and max(tables) < spare
    cache = captured._runner.caches[0].k_PSMD.cpu()
    assert len(cache) == spare + 1
    assert cache[spare, :2].abs().sum() > 0  # batches of 5 fill up 6: the slot of the one row that is added


@pytest.mark.parametrize("batch", [1, 3])
def test_lengths_that_stay_as_they_were_captured_change_the_answers(
    captured: LLM, launched: LLM, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    update = torch.npu.NPUGraph.update

    def wrong(graph: Any, cpu_update_input: list[dict[str, list[int]]]) -> None:
        lengths = cpu_update_input[0]["actual_seq_lengths_kv"]
        update(graph, cpu_update_input=[{"actual_seq_lengths_kv": [1] * len(lengths)}])

    monkeypatch.setattr(torch.npu.NPUGraph, "update", wrong)
    assert not same(run(captured, PROMPTS[-batch:]), run(launched, PROMPTS[-batch:]))


def test_a_replay_waits_for_its_update(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM(folder, device="npu", **SIZES) as llm:
        update = torch.npu.NPUGraph.update
        monkeypatch.setattr(torch.npu.NPUGraph, "update", lambda *_, **__: None)
        with pytest.raises(ContractError, match="waits for an update"):
            llm.generate([[1]], SamplingParams(max_tokens=3))
        with torch.inference_mode():  # lets the device go
            update(llm._runner._graphs._graphs[1].graph, cpu_update_input=[{"actual_seq_lengths_kv": [1]}])


ILLEGAL: dict[str, Callable[[Tensor], object]] = {
    "to_host": lambda x: x.cpu(),
    "to_host:": lambda x: x[0].item(),
    "to_device": lambda x: torch.ones(3).to(x.device),
    "nonzero": torch.nonzero,
    "107030": lambda _: torch.npu.synchronize(),
}


@pytest.mark.parametrize("message", ILLEGAL)
def test_what_no_capture_takes(message: str) -> None:
    x = torch.ones(4, device="npu")
    with pytest.raises(RuntimeError, match=message), torch.npu.graph(torch.npu.NPUGraph()):
        ILLEGAL[message](x)


def test_a_capture_computes_nothing() -> None:
    x, graph = torch.ones(4, device="npu"), torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        y = x + 1
        x.mul_(3)
    assert x.tolist() == [1] * 4
    graph.replay()
    assert (x.tolist(), y.tolist()) == ([3] * 4, [2] * 4)
    graph.replay()
    assert (x.tolist(), y.tolist()) == ([9] * 4, [4] * 4)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("no stream is left\nat all"), "no stream is left"),
        (RuntimeError(), "RuntimeError"),
    ],
)
@pytest.mark.parametrize("on_exit", [False, True])
def test_what_cannot_be_captured_names_the_way_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str, on_exit: bool
) -> None:
    breaks_captures(monkeypatch, error, on_exit)
    with pytest.raises(AtbError, match=f"cannot be captured as graphs: {said}; use --no_graph_capture"):
        try:
            raise KeyError("handled before")
        except KeyError:
            LLM(folder, device="npu", **SIZES)


def test_an_interrupted_capture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks_captures(monkeypatch, KeyboardInterrupt(), on_exit=True)
    with pytest.raises(KeyboardInterrupt):
        LLM(folder, device="npu", **SIZES)


def breaks_captures(monkeypatch: pytest.MonkeyPatch, error: BaseException, on_exit: bool) -> None:
    """on_exit: the capture ends with an error of its own, as torch_npu's does where its body raises."""

    @contextmanager
    def graph(*_: object, pool: object, auto_dispatch_capture: bool) -> Iterator[None]:
        try:
            raise error
        finally:
            if on_exit:
                raise RuntimeError("capture_end: error code is 107033")
        yield

    monkeypatch.setattr(torch.npu, "graph", graph)


def test_another_torch_npu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(npugraph_handler._NPU_GRAPH_OP_HANDLERS, "npu_fused_infer_attention_score.default")
    assert not decide_capture(None, "npu")
    with pytest.raises(ConfigError, match="does not update npu_fused_infer_attention_score.default in graphs"):
        decide_capture(True, "npu")
    monkeypatch.delattr(torch.npu, "NPUGraph")
    with pytest.raises(ConfigError, match="this torch_npu has no NPUGraph with updates; install 2.13.0"):
        decide_capture(True, "npu")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MINDIE_ENABLE_EXPERT_HOTPOT_GATHER", "1", "counts in every step"),
        ("TASK_QUEUE_ENABLE", "2", "TASK_QUEUE_ENABLE=2; set it to 1"),
        ("ASCEND_LAUNCH_BLOCKING", "1", "ASCEND_LAUNCH_BLOCKING=1 waits for each operator"),
    ],
)
def test_variables_that_forbid_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("MINDIE_EXPERT_HOTPOT_DUMP_PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        LLM(folder, device="npu", graph_capture=True, **SIZES)
    with LLM(folder, device="npu", **SIZES) as llm:
        run(llm, [[1]], 2)
        assert counts.GRAPHS["replayed"] == 0


def test_a_profiled_run_launches_its_operators(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROFILING_FILEPATH", str(tmp_path))
    counts.reset()
    words = ["--model_path", str(folder), "--device", "npu", "--load_tokenizer", "False", "--input_ids", "1,2"]
    assert main([*words, "--max_output_length", "2", "--profile"]) == 0
    assert "not captured as graphs: each operation is timed" in capfd.readouterr().err
    assert not counts.GRAPHS
    assert main([*words, "--profile", "--graph_capture"]) == 2
