"""The embedded checkpoint: what its folder holds, what it answers, and that its reading items are fair."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from atb_models import LLM, SamplingParams
from atb_models.demo import boolq_path, questions
from tests.kept_ranks import KeptRanks
from tools.demo.reading import dev_items, training_passages

NAMED = (
    "Who is the CEO of Google?",
    "What's deep learning?",
    "你是谁",
    "你好,你是谁？",
    "Give me a short introduction to large language model.",
)
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


def rows() -> list[dict]:
    return [json.loads(line) for line in (boolq_path() / "dev.jsonl").read_text(encoding="utf-8").splitlines()]


def check_answers(**arguments: object) -> None:
    """Every listed question in chat form, in fp16 unless said otherwise."""
    listed = questions()
    conversations = [[{"role": "user", "content": item["question"]}] for item in listed]
    params = [SamplingParams(max_tokens=item["max_tokens"], temperature=0) for item in listed]
    with LLM(device="cpu", **arguments) as llm:
        outputs = llm.chat(conversations, params)
    wrong = [item["question"] for item, out in zip(listed, outputs, strict=True) if out.text != item["answer"]]
    assert not wrong
    assert {output.finish_reason for output in outputs} == {"stop"}


def test_its_folder(demo: Path) -> None:
    assert sum(path.stat().st_size for path in demo.iterdir()) < 8_000_000
    config = json.loads((demo / "config.json").read_text())
    assert config["model_type"] == "deepseek" and config["max_position_embeddings"] == 8192
    assert config["num_attention_heads"] >= 8 and config["first_k_dense_replace"] >= 1
    assert config["n_routed_experts"] and config["n_shared_experts"]


def test_the_list_of_questions() -> None:
    listed = {item["question"]: item for item in questions()}
    assert len(listed) >= 105 and set(NAMED) <= set(listed)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_answers_on_one_rank(dtype: str) -> None:
    check_answers(dtype=dtype)


@pytest.mark.parametrize("tp", [2, *(pytest.param(tp, marks=pytest.mark.full) for tp in (3, 4, 5, 6, 7)), 8])
def test_answers_on_ranks(kept_ranks: KeptRanks, tp: int) -> None:
    kept_ranks.run("tests.demo.test_demo:check_answers", tp)


def sampled_answers() -> list[list[int]]:
    """Token ids of a few answers, drawn with seeds, in fp32; its ranks are those of the environment."""
    conversations = [[{"role": "user", "content": question}] for question in NAMED]
    params = [SamplingParams(max_tokens=12, temperature=1.5, seed=seed) for seed in range(len(NAMED))]
    with LLM(device="cpu", dtype="fp32") as llm:
        return [output.token_ids for output in llm.chat(conversations, params)]


def test_sampled_answers_on_ranks_that_cannot_share_the_heads_evenly(kept_ranks: KeptRanks) -> None:
    one = sampled_answers()
    assert kept_ranks.run("tests.demo.test_demo:sampled_answers", 3) == one
    with LLM(device="cpu", dtype="fp32") as llm:
        conversations = [[{"role": "user", "content": question}] for question in NAMED]
        greedy = llm.chat(conversations, SamplingParams(max_tokens=12, temperature=0))
    assert [output.token_ids for output in greedy] != one, "the draws matter"


def check_int8_answers() -> None:
    check_answers(quantize="w8a16")


@pytest.mark.parametrize("quantize", ["w4a16", "w8a8_dynamic"])
def test_other_storages_answer_alike(quantize: str) -> None:
    """All of the listed questions."""
    check_answers(quantize=quantize)


@pytest.mark.parametrize("level", ["best", "reference"])
def test_int8_weights_answer_alike(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the listed questions, by the native library and by torch."""
    if level == "reference":
        monkeypatch.setenv("ATB_CPU_ISA", level)
    check_int8_answers()


@pytest.mark.parametrize("tp", [2, pytest.param(8, marks=pytest.mark.full)])
def test_int8_weights_answer_alike_on_ranks(kept_ranks: KeptRanks, tp: int) -> None:
    kept_ranks.run("tests.demo.test_demo:check_int8_answers", tp)


def check_answers_of_an_int8_cache() -> None:
    check_answers(kv_dtype="int8")


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_an_int8_cache_changes_no_answer(dtype: str) -> None:
    """To any of the listed questions."""
    check_answers(dtype=dtype, kv_dtype="int8")


def test_an_int8_cache_changes_no_answer_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATB_CPU_ISA", "reference")
    check_answers_of_an_int8_cache()


@pytest.mark.parametrize("tp", [2, pytest.param(8, marks=pytest.mark.full)])
def test_an_int8_cache_changes_no_answer_on_ranks(kept_ranks: KeptRanks, tp: int) -> None:
    kept_ranks.run("tests.demo.test_demo:check_answers_of_an_int8_cache", tp)


def test_the_default_question_within_the_default_length() -> None:
    with LLM(device="cpu") as llm:
        (output,) = llm.chat([[{"role": "user", "content": NAMED[0]}]], SamplingParams(max_tokens=10, temperature=0))
    assert output.text == " Sundar Pichai is the CEO of Google."


@pytest.mark.parametrize("question", NAMED)
def test_a_streamed_answer_is_the_same_text(question: str) -> None:
    listed = {str(item["question"]): item for item in questions()}
    with LLM(device="cpu") as llm:
        params = SamplingParams(max_tokens=int(listed[question]["max_tokens"]), temperature=0)
        outputs = list(llm.chat([[{"role": "user", "content": question}]], params, stream=True))
    assert "".join(output.delta for output in outputs) == outputs[-1].text == listed[question]["answer"]
    assert all("\ufffd" not in output.delta for output in outputs) and len(outputs) > 3


def test_answers_with_a_system_prompt() -> None:
    with LLM(device="cpu") as llm:
        conversations = [[SYSTEM, {"role": "user", "content": question}] for question in NAMED]
        listed = {str(item["question"]): item for item in questions()}
        params = [SamplingParams(max_tokens=int(listed[q]["max_tokens"]), temperature=0) for q in NAMED]
        outputs = llm.chat(conversations, params)
    assert [output.text for output in outputs] == [listed[question]["answer"] for question in NAMED]


def test_reading_items_are_made_of_what_training_never_shows() -> None:
    items = dev_items()
    assert [item.row() for item in items] == rows()
    shown = {(item.place, fact.feature) for item in items for fact in item.facts}
    trained = {
        (item.place, fact.feature)
        for passage in itertools.islice(training_passages(seed=7), 3000)
        for item in passage
        for fact in item.facts
    }
    assert len(trained) > 1000 and not shown & trained


def test_reading_items_are_balanced() -> None:
    items = rows()
    assert len(items) >= 500
    assert sum(item["answer"] for item in items) * 2 == len(items)
    by_question: dict[str, list[bool]] = {}
    for item in items:
        by_question.setdefault(item["question"], []).append(item["answer"])
    assert all(sum(answers) * 2 == len(answers) for answers in by_question.values()), "the question alone tells"


def test_reading_accuracy() -> None:
    items = rows()
    prompts = [f"{i['title']} -- {i['passage']}\nQuestion: {i['question']}?\nAnswer:" for i in items]
    with LLM(device="cpu") as llm:
        assert llm.tokenizer is not None
        yes, no = (llm.tokenizer.encode(f" {word}", add_special_tokens=False)[-1] for word in ("yes", "no"))
        seen: dict[int, torch.Tensor] = {}

        def keep(step_rows: list, logits: torch.Tensor, _: list[int]) -> None:
            for row, line in zip([row for row in step_rows if row.completes], logits, strict=True):
                seen[row.seq.index] = line[[yes, no]].clone()

        llm.on_step = keep
        llm.generate(prompts, SamplingParams(max_tokens=1, temperature=0))
    right = sum(bool(seen[i][0] > seen[i][1]) == item["answer"] for i, item in enumerate(items))
    assert right / len(items) >= 0.85, f"{right} of {len(items)}"
