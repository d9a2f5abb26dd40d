"""`LLM` from outside, on a tiny random checkpoint: what it takes, gives and refuses."""

from __future__ import annotations

import os
import signal
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from atb_models import LLM, SamplingParams, cli
from atb_models.errors import CapacityError, CheckpointError, ConfigError, RankError, RequestError
from atb_models.ranks.group import RankGroup
from tests.ranks.toys import children, wait_until_dead
from tests.tiny import write_checkpoint, write_weights

GREEDY = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("with a blank")
    write_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder, dtype="fp32", device="cpu", max_batch_size=3, block_size=16) as llm:
        yield llm


def test_outputs_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = [[5] * 30, [6], [7, 8], [9] * 10]
    params = [SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for n in (9, 1, 4, 2)]
    outputs = llm.generate(prompts, params)
    assert [output.index for output in outputs] == [0, 1, 2, 3]
    assert [output.prompt_token_ids for output in outputs] == prompts
    assert [len(output.token_ids) for output in outputs] == [9, 1, 4, 2]
    assert {output.finish_reason for output in outputs} == {"length"}
    alone = [llm.generate([prompt], one)[0].token_ids for prompt, one in zip(prompts, params, strict=True)]
    assert [output.token_ids for output in outputs] == alone


def test_streaming_yields_each_token(llm: LLM) -> None:
    seen: dict[int, list[int]] = {}
    for output in llm.generate([[5, 6], [7]], GREEDY, stream=True):
        assert len(output.token_ids) == len(seen.get(output.index, [])) + 1
        seen[output.index] = output.token_ids
    assert [seen[i] for i in (0, 1)] == [output.token_ids for output in llm.generate([[5, 6], [7]], GREEDY)]


def test_a_program_may_add_and_abort_requests_between_steps(llm: LLM) -> None:
    engine = llm.engine
    kept = engine.add_request([5, 6], GREEDY, index=1)
    dropped = engine.add_request([7], GREEDY, index=2)
    assert not engine.step() and engine.counts()["running"] == 2
    aborted = engine.abort(dropped.seq_id)
    assert aborted is not None and (aborted.index, aborted.finish_reason) == (2, "abort")
    outputs = []
    while engine.has_work():
        outputs += engine.step()
    assert [output.index for output in outputs] == [1] and engine.abort(kept.seq_id) is None
    assert outputs[0].token_ids == llm.generate([[5, 6]], GREEDY)[0].token_ids
    counts, metrics = engine.counts(), llm.metrics()
    assert counts["free_blocks"] == counts["total_blocks"] and counts.items() <= metrics.items()
    assert metrics.keys() - counts.keys() == {"prefill_step_s", "decode_step_s"}


def test_a_dead_rank_is_found_without_a_step(folder: Path, llm: LLM) -> None:
    llm.check()
    assert llm.size == 1
    before = set(children())
    with LLM(folder, dtype="fp32", device="cpu", tp=2) as two:
        assert two.size == 2
        two.check()
        (rank,) = set(children()) - before
        os.kill(rank, signal.SIGKILL)
        wait_until_dead([rank])
        with pytest.raises(RankError, match=r"rank 1 .* while idle"):
            for _ in range(100):  # the thread that watches the ranks sees it a moment later
                two.check()
                time.sleep(0.05)


def test_leaving_a_stream_frees_its_blocks(llm: LLM) -> None:
    stream = llm.generate([[5, 6], [7]], GREEDY, stream=True)
    next(iter(stream))
    assert llm.metrics()["running"] == 2
    stream.close()  # type: ignore[attr-defined]
    metrics = llm.metrics()
    assert (metrics["running"], metrics["waiting"]) == (0, 0)
    assert metrics["free_blocks"] == metrics["total_blocks"]


def test_one_call_at_a_time(llm: LLM) -> None:
    stream = llm.generate([[5, 6]], GREEDY, stream=True)
    with pytest.raises(RequestError, match="streamed call of this LLM is still open"):
        llm.generate([[7]], GREEDY)
    del stream  # never read
    assert len(llm.generate([[7]], GREEDY)) == 1


def test_prompt_logits_of_one_and_of_several(llm: LLM) -> None:
    one, two = llm.prompt_logits([5, 6, 7]), llm.prompt_logits([[5, 6, 7], [8]])
    assert one.shape == (3, 256) and one.dtype == torch.float32
    assert torch.allclose(one, two[0], atol=1e-5) and two[1].shape == (1, 256)


def test_tensors_and_arrays_are_token_ids_too(llm: LLM) -> None:
    expected = llm.prompt_logits([5, 6])
    for one in (torch.tensor([5, 6]), np.array([5, 6]), list(np.array([5, 6]))):
        assert torch.equal(llm.prompt_logits(one), expected)
        assert llm.generate([one], GREEDY)[0].prompt_token_ids == [5, 6]


def test_what_is_no_params(llm: LLM) -> None:
    with pytest.raises(RequestError, match="params must be a SamplingParams or a list of them"):
        llm.generate([[5]], {"max_tokens": 3})  # type: ignore[call-overload]


def test_an_interrupted_step_leaves_the_llm_usable(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = llm.generate([[5, 6]], GREEDY)[0].token_ids
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(llm._runner, "execute", interrupt)
        llm.generate([[5, 6]], GREEDY)
    assert llm.generate([[5, 6]], GREEDY)[0].token_ids == expected


def interrupt(message: object) -> None:
    raise KeyboardInterrupt


def test_a_closed_llm_says_so(folder: Path) -> None:
    llm = LLM(folder, device="cpu")
    runner = weakref.ref(llm._runner)
    llm.close()
    llm.close()
    assert runner() is None, "the model is still held"
    with pytest.raises(RequestError, match="this LLM is closed"):
        llm.generate([[5]], GREEDY)


def test_a_prompt_that_overflows_spoils_no_other(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path)
    tensors["model.embed_tokens.weight"][9] = float("inf")
    write_weights(tmp_path, tensors)
    sampled = SamplingParams(max_tokens=5, temperature=1.0, seed=3, ignore_eos=True)
    with LLM(tmp_path, dtype="fp32", device="cpu", block_size=16) as llm:
        alone = llm.generate([[5] * 20], GREEDY)[0].token_ids
        spoilt, beside = llm.generate([[9] * 40, [5] * 20], [sampled, GREEDY])
        assert beside.token_ids == alone
        assert spoilt.finish_reason == "error" and spoilt.token_ids == []
        assert llm.generate([[5] * 20], GREEDY)[0].token_ids == alone


def test_max_new_tokens_of_the_generation_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, generation={"max_new_tokens": 7, "eos_token_id": 255})
    with LLM(tmp_path, device="cpu") as llm:
        assert len(llm.generate([[5]], SamplingParams(ignore_eos=True))[0].token_ids) == 7
        assert len(llm.generate([[5]], SamplingParams(ignore_eos=True, max_tokens=9))[0].token_ids) == 9


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "1"}, "WORLD_SIZE 1 with RANK 1; unset them, or start the ranks with torchrun"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE 2 without RANK, MASTER_ADDR, MASTER_PORT; unset them"),
    ],
)
def test_variables_left_over_from_torchrun(
    folder: Path, environ: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        LLM(folder, device="cpu")


def test_torchruns_ranks_are_the_environments(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(ConfigError, match="tp 2 does not match torchrun's WORLD_SIZE 1"):
        LLM(folder, device="cpu", tp=2)


def test_logprobs_are_those_of_the_logits(llm: LLM) -> None:
    (output,) = llm.generate([[5, 6]], SamplingParams(max_tokens=1, temperature=0, logprobs=3))
    expected = torch.log_softmax(llm.prompt_logits([5, 6])[-1], dim=0).topk(3)
    assert output.logprobs is not None
    assert list(output.logprobs[0]) == expected.indices.tolist()
    assert list(output.logprobs[0].values()) == pytest.approx(expected.values.tolist(), abs=1e-5)


def test_a_refused_prompt_stops_the_call_before_any_runs(llm: LLM) -> None:
    with pytest.raises(RequestError, match="600 tokens.*max_seq_len 512"):
        llm.generate([[5], [6] * 600], GREEDY)
    assert llm.metrics()["waiting"] == 0


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["text"], "needs the tokenizer files"),
        ("text", "prompts must be a list"),
        ([5, 6], "prompts must be a list"),
        ([[256]], "token id 256; ids go from 0 to 255"),
        ([[]], "0 tokens"),
        (None, "prompts must be a list"),
        ([b"x"], "token ids must be a list"),
        ([7.5], "token ids must be a list"),
    ],
)
def test_prompts_that_cannot_be_served(llm: LLM, prompts: list, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        llm.generate(prompts, GREEDY)


def test_one_params_each_or_one_for_all(llm: LLM) -> None:
    with pytest.raises(RequestError, match="2 SamplingParams for 3 prompts"):
        llm.generate([[5], [6], [7]], [GREEDY, GREEDY])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": "int8"}, ConfigError, "dtype must be one of fp16, bf16, fp32, auto, not 'int8'"),
        ({"device": "tpu"}, ConfigError, "device must be one of npu, cuda, cpu"),
        ({"device": "npu"}, ConfigError, r"device npu: (torch_npu is not installed|CANN is not there)"),
        ({"tp": 0}, ConfigError, "tp must be a whole number of 1 or more, not 0"),
        ({"tp": 9}, ConfigError, "9 ranks cannot share 8 attention heads.*any number of ranks up to 8$"),
        ({"max_seq_len": 513}, ConfigError, "max_seq_len 513 is beyond the model's 512 positions"),
        ({"prefix_cache": "no"}, ConfigError, "prefix_cache must be True or False, not 'no'"),
        ({"graph_capture": 1}, ConfigError, "graph_capture must be True, False or None, not 1"),
        ({"graph_capture": True}, ConfigError, "graph_capture: device cpu captures no graphs; use --device npu"),
        ({"deterministic": 1}, ConfigError, "deterministic must be True or False, not 1"),
        ({"config_overrides": ["a"]}, ConfigError, "config_overrides must be a dict"),
        ({"config_overrides": {"torch_dtype": torch.float16}}, ConfigError, "config_overrides must be a dict of JSON"),
        ({"load_format": "gguf"}, ConfigError, "load_format must be one of"),
        ({"config_overrides": {"num_layers": 1}}, ConfigError, "num_layers.*num_hidden_layers"),
        ({"config_overrides": {"vocab_size": 300}}, CheckpointError, r"embed_tokens.weight.*\(256, 64\).*\(300, 64\)"),
    ],
)
def test_arguments_that_cannot_be_honoured(folder: Path, arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LLM(folder, **{"device": "cpu", **arguments})


def test_a_pool_too_small_for_a_request(folder: Path) -> None:
    with LLM(folder, device="cpu", block_size=16, kv_blocks=2) as llm:
        with pytest.raises(CapacityError, match="needs 4 KV blocks of 16 tokens.*there are 2"):
            llm.generate([[5] * 50], GREEDY)
        assert len(llm.generate([[5] * 20], GREEDY)[0].token_ids) == 5


def test_ranks_wait_for_each_other_after_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def barrier(group: RankGroup, name: str) -> None:
        names.append(name)
        wait(group, name)

    names: list[str] = []
    wait = RankGroup.barrier
    monkeypatch.setattr(RankGroup, "barrier", barrier)
    with LLM(folder, device="cpu", tp=2):
        assert names[:2] == ["their start", "loading"]


def test_the_model_is_let_go_before_its_group_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def close(group: RankGroup) -> None:
        gone.append(runner() is None)
        end(group)

    gone: list[bool] = []
    end = RankGroup.close
    llm = LLM(folder, device="cpu")
    runner = weakref.ref(llm._runner)
    monkeypatch.setattr(RankGroup, "close", close)
    llm.close()
    assert gone == [True]


def test_dtype_auto_is_the_checkpoints(folder: Path) -> None:
    with LLM(folder, dtype="auto", device="cpu") as auto, LLM(folder, dtype="bf16", device="cpu") as bf16:
        assert torch.equal(auto.prompt_logits([5, 6]), bf16.prompt_logits([5, 6]))


def test_quantization_is_the_users_or_the_checkpoints(folder: Path, llm: LLM, tmp_path: Path) -> None:
    assert llm.quantization is None
    with LLM(folder, device="cpu", quantize="w8a16") as int8:
        assert int8.quantization == "w8a16"
    assert cli.main(["quantize", str(folder), str(tmp_path / "out"), "--to", "w8a8_dynamic", "--no_check"]) == 0
    with LLM(tmp_path / "out", device="cpu") as stored:
        assert stored.quantization == "w8a8_dynamic"


def test_dummy_weights_need_no_checkpoint_and_are_the_same_on_any_ranks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((write_config(tmp_path / "source")).read_text())
    logits = []
    for tp in (1, 2):
        with LLM(tmp_path, dtype="fp32", device="cpu", tp=tp, load_format="dummy") as llm:
            logits.append(llm.prompt_logits([5, 6, 7]))
    assert torch.allclose(*logits, atol=2e-4)
    assert logits[0].std() > 1e-3


def write_config(folder: Path) -> Path:
    write_checkpoint(folder)
    return folder / "config.json"


def test_the_token_counts_of_each_expert(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINDIE_ENABLE_EXPERT_HOTPOT_GATHER", "1")
    monkeypatch.setenv("MINDIE_EXPERT_HOTPOT_DUMP_PATH", str(tmp_path))
    with LLM(folder, device="cpu") as llm:
        llm.generate([[5] * 7], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
    rows = [line.split(",") for line in (tmp_path / "experts.csv").read_text().split()[1:]]
    assert len(rows) == 2 * 8  # MoE layers, experts
    for layer, counted in (("1", 7 + 3), ("2", 1 + 3)):  # the last layer's experts get what needs logits
        assert sum(int(tokens) for at, _, tokens in rows if at == layer) == counted * 3
