"""Every row of the grammar's table: what it takes, and how it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from modeltest.command import cases
from modeltest.command.cases import Run
from modeltest.command.families import MODEL_TYPES
from tests.documents.reading import rows
from tests.harness.typed import BOOLQ, MAXBS, SPEED, refusal


@pytest.mark.parametrize(("word", "dtype"), [("pa_fp16", "fp16"), ("pa_bf16", "bf16")])
def test_model_type(parse: Any, demo: Path, word: str, dtype: str) -> None:
    run = parse(word, "full_BoolQ", "1", "deepseek", "W", "8")
    assert run == Run(dtype, "full_BoolQ", "deepseek", demo, 8, ((1,),))


@pytest.mark.parametrize("word", ["fa", "basic"])
def test_model_types_that_are_refused(parse: Any, word: str) -> None:
    said = refusal(parse, word, *BOOLQ[1:], "W", "8")
    assert said.startswith(f"word 1 '{word}' is refused: ") and "pa_fp16, pa_bf16" in said


@pytest.mark.parametrize("word", ["pa", "pa_fp32", "", "PA_FP16", "full_BoolQ"])
def test_model_types_that_are_unknown(parse: Any, word: str) -> None:
    assert refusal(parse, word) == f"word 1 {word!r} is not known there; expected: model_type, one of pa_fp16, pa_bf16"


def test_no_words(parse: Any) -> None:
    assert refusal(parse) == "word 1 is missing; expected there: model_type, one of pa_fp16, pa_bf16"


@pytest.mark.parametrize("name", ["BoolQ", "GSM8K", "TruthfulQA", "HumanEval"])
def test_question_sets(parse: Any, name: str) -> None:
    run = parse("pa_fp16", f"full_{name}", "1", "deepseek", "W", "8")
    assert (run.mode, run.set, run.shots, run.is_performance) == (f"full_{name}", name, None, False)


@pytest.mark.parametrize("name", ["MMLU", "CEval", "CMMLU"])
@pytest.mark.parametrize("shots", [0, 5])
def test_question_sets_with_shots(parse: Any, name: str, shots: int) -> None:
    run = parse("pa_fp16", f"full_{name}", str(shots), "4", "deepseek", "W", "8")
    assert (run.set, run.shots, run.batch_sizes) == (name, shots, ((4,),))


@pytest.mark.parametrize("word", ["five", "-1", "[5]"])
def test_shots_that_are_no_number(parse: Any, word: str) -> None:
    assert refusal(parse, "pa_fp16", "full_MMLU", word).startswith(
        f"word 3 {word!r} is not known there; expected: the number of shots"
    )


def test_a_set_with_shots_needs_them(parse: Any) -> None:
    """The batch size is taken for them; then a batch size is missing."""
    assert refusal(parse, "pa_fp16", "full_MMLU", "5", "deepseek", "W", "8").startswith("word 4 'deepseek' ")


@pytest.mark.parametrize(
    "mode",
    ["simplified_GSM8K", "simplified_TruthfulQA", "edge_BoolQ", "edge_GSM8K", "full_HumanEval_X", "full_GPQA",
     "full_AIME2024", "full_LongBench", "full_LongBench-E", "full_NeedleBench"],
)  # fmt: skip
def test_modes_that_are_refused(parse: Any, mode: str) -> None:
    said = refusal(parse, "pa_fp16", mode, "1", "deepseek", "W", "8")
    assert said.startswith(f"word 2 {mode!r} is refused: ") and all(known in said for known in cases.MODES)


@pytest.mark.parametrize("mode", ["full_Boolq", "boolq", "performance_max", "deepseek"])
def test_modes_that_are_unknown(parse: Any, mode: str) -> None:
    said = refusal(parse, "pa_fp16", mode, "1", "deepseek", "W", "8")
    assert said.startswith(f"word 2 {mode!r} is not known there; expected: test_mode, one of performance, ")


@pytest.mark.parametrize(
    ("words", "pairs"),
    [
        (["[[2048,2048],[1024,1024],[512,512],[256,256]]"], ((2048, 2048), (1024, 1024), (512, 512), (256, 256))),
        (["[[256,256],[2048,16]]"], ((256, 256), (2048, 16))),
        (["[[1,1]]"], ((1, 1),)),
        (["[[256, 256], [2048, 16]]"], ((256, 256), (2048, 16))),
        (["[[256,", "256],", "[2048,", "16]]"], ((256, 256), (2048, 16))),
        (["[]"], ((256, 256), (512, 512), (1024, 1024), (2048, 2048))),
    ],
)
def test_pairs(parse: Any, words: list[str], pairs: tuple[tuple[int, int], ...]) -> None:
    assert parse("pa_fp16", "performance", *words, "1", "deepseek", "W", "8").pairs == pairs


@pytest.mark.parametrize("word", ["1", "[256,256]", "[[256]]", "[[1,2,3]]", "[[256,0]]", "[[256,256]", "deepseek"])
def test_pairs_that_are_none(parse: Any, word: str) -> None:
    said = refusal(parse, "pa_fp16", "performance", word)
    assert said.startswith(f"word 3 {word!r} is not known there; expected: pairs of prompt and answer tokens")


def test_a_list_that_never_ends(parse: Any) -> None:
    assert refusal(parse, "pa_fp16", "performance", "[[256,", "256]", "1", "deepseek").startswith("word 3 '[[256,' ")


@pytest.mark.parametrize(
    ("words", "sizes"),
    [(["1"], (1,)), (["1,4"], (1, 4)), (["[1,4]"], (1, 4)), (["[1,", "4]"], (1, 4)), (["1,", "4"], (1, 4)),
     (["64,8"], (64, 8))],
)  # fmt: skip
def test_batch_sizes(parse: Any, words: list[str], sizes: tuple[int, ...]) -> None:
    assert parse("pa_fp16", "full_BoolQ", *words, "deepseek", "W", "8").batch_sizes == (sizes,)
    assert parse(*SPEED, *words, "deepseek", "W", "8").batch_sizes == (sizes,)


@pytest.mark.parametrize("word", ["0", "[]", "1,1", "x", "[1,4", "1.5", "[[1,4]]"])
def test_batch_sizes_that_are_none(parse: Any, word: str) -> None:
    said = refusal(parse, "pa_fp16", "full_BoolQ", word, "deepseek", "W", "8")
    assert said.startswith(f"word 3 {word!r} is not known there; expected: batch sizes")


@pytest.mark.parametrize("words", [["[[1,4],[1,8]]"], ["[[1,", "4],", "[1,", "8]]"]])
def test_batch_sizes_for_each_pair(parse: Any, words: list[str]) -> None:
    assert parse(*SPEED, *words, "deepseek", "W", "8").batch_sizes == ((1, 4), (1, 8))


def test_batch_sizes_for_another_number_of_pairs(parse: Any) -> None:
    said = refusal(parse, *SPEED, "[[1,4],[1,8],[2]]", "deepseek", "W", "8")
    assert said.startswith("word 4 '[[1,4],[1,8],[2]]' holds 3 lists for 2 pairs; ")


@pytest.mark.parametrize(
    ("words", "ranges", "limit"),
    [
        (["[1,64]", "50"], ((1, 64),), 50.0),
        (["[[1,64],[2,32]]", "0.5"], ((1, 64), (2, 32)), 0.5),
        (["[8,8]", "50"], ((8, 8),), 50.0),
        (["50"], ((1, 2000),), 50.0),
    ],
)
def test_range_and_time_limit(parse: Any, words: list[str], ranges: tuple[tuple[int, int], ...], limit: float) -> None:
    run = parse(*MAXBS, *words, "deepseek", "W", "8")
    assert (run.batch_sizes, run.time_limit_ms) == (ranges, limit)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["[64,1]", "50"], "word 4 '[64,1]' is not known there; expected: a range of batch sizes such as [1,64], then"),
        (["[1,2,3]", "50"], "word 4 '[1,2,3]' is not known there; expected: a range of batch sizes"),
        (["[1,64]", "soon"], "word 5 'soon' is not known there; expected: the most milliseconds"),
        (["[1,64]", "0"], "word 5 '0' is not known there; expected: the most milliseconds"),
        (["[[1,64]]", "50"], "word 4 '[[1,64]]' holds 1 list for 2 pairs; "),
    ],
)
def test_ranges_and_time_limits_that_are_none(parse: Any, words: list[str], said: str) -> None:
    assert refusal(parse, *MAXBS, *words, "deepseek", "W", "8").startswith(said)


@pytest.mark.parametrize("mode", ["performance_single", "precision_single"])
def test_prompts(parse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    file = tmp_path / "my prompts.txt"
    file.write_text("one\n\n two \n", encoding="utf-8-sig")  # Windows' mark at the beginning is no text
    monkeypatch.chdir(tmp_path)
    said = {
        '["a b", "c"]': ("a b", "c"), "['你好']": ("你好",), '"[1,2] is a list"': ("[1,2] is a list",),
        str(file): ("one", " two "), file.name: ("one", " two "),
    }  # fmt: skip
    for word, texts in said.items():
        run = parse("pa_fp16", mode, "[[8,4]]", word, "2", "deepseek", "W", "8")
        assert (run.texts, run.pairs, run.batch_sizes) == (texts, ((8, 4),), ((2,),))


@pytest.mark.parametrize("word", ["/none/file.txt", "Who are you?", "[1, 2]", "[", ".", "~no-such-user/x"])
def test_prompts_that_are_none(parse: Any, word: str) -> None:
    said = refusal(parse, "pa_fp16", "performance_single", "[[8,4]]", word, "1", "deepseek", "W", "8")
    assert said.startswith(f"word 4 {word!r} is neither a list such as ")


def test_an_empty_list_of_prompts(parse: Any) -> None:
    said = refusal(parse, "pa_fp16", "performance_single", "[[8,4]]", "[]", "1", "deepseek", "W", "8")
    assert said == "word 4 '[]' holds no prompt"


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["4"], "prefill_batch: "), (["prefill_length", "4096"], "a prefill step"), (["dataset", "boolq"], "speed is")],
)
def test_words_of_performance_that_are_refused(parse: Any, words: list[str], reason: str) -> None:
    said = refusal(parse, *SPEED, "1", *words, "deepseek", "W", "8")
    assert said.startswith(f"word 5 {words[0]!r} is refused: {reason}")


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_model_names(parse: Any, name: str) -> None:
    assert parse("pa_fp16", "full_BoolQ", "1", name, "W", "8").model == name


@pytest.mark.parametrize("document", ["tests/modeltest/README.md", "tests/modeltest/README.zh.md"])
def test_model_names_are_documented(document: str) -> None:
    (words,) = [row[2] for row in rows(document) if row[1] == "model_name"]
    assert set(re.findall(r"`(\w+)`", words)) == {"model_type", *MODEL_TYPES}


@pytest.mark.parametrize("word", ["gemma", "DeepSeek", "deepseekv4"])
def test_model_names_that_are_unknown(parse: Any, word: str) -> None:
    said = refusal(parse, "pa_fp16", "full_BoolQ", "1", word, "W", "8")
    assert said == f"word 4 {word!r} is not known there; expected: model_name, one of {', '.join(MODEL_TYPES)}"


@pytest.mark.parametrize(("words", "chat"), [([], False), (["chat"], True), (["base"], False)])
def test_chat(parse: Any, words: list[str], chat: bool) -> None:
    assert parse(*BOOLQ, *words, "W", "8").chat is chat


def test_lora_is_refused(parse: Any) -> None:
    for before in ([], ["chat"]):
        said = refusal(parse, *BOOLQ, *before, "lora", "adapters.jsonl", "W", "8")
        assert said == f"word {5 + len(before)} 'lora' is refused: LoRA adapters are not supported"


def test_weights(parse: Any, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my weights").symlink_to(demo)
    monkeypatch.chdir(tmp_path)
    assert parse(*BOOLQ, "my weights", "8").weight_dir == Path("my weights")
    (tmp_path / "empty").mkdir()
    assert refusal(parse, *BOOLQ, "empty", "8").startswith("word 5 'empty' is no weight_dir: ")


def test_weights_of_an_unset_variable(parse: Any) -> None:
    assert refusal(parse, *BOOLQ, "8").startswith("word 5 '8' is no folder; weight_dir, ")
    assert refusal(parse, *BOOLQ, "", "8").startswith("word 5 '' is not known there; expected: weight_dir, ")


def test_paths_that_cannot_be_one(parse: Any) -> None:
    for word in ("~no-such-user/x", "a" * 300):
        assert refusal(parse, *BOOLQ, word, "8").startswith(f"word 5 '{word}' is no folder; weight_dir, ")
        assert refusal(parse, *BOOLQ, "W", word).startswith(f"word 6 '{word}' is not known there; expected: chip_num")


def test_trust_remote_code(parse: Any) -> None:
    assert parse(*BOOLQ, "W", "trust_remote_code", "8").trust_remote_code
    assert not parse(*BOOLQ, "W", "8").trust_remote_code


def test_encrypted_weights_are_refused(parse: Any) -> None:
    for before in ([], ["trust_remote_code"]):
        said = refusal(parse, *BOOLQ, "W", *before, "encrypt_enable", "8")
        assert said == f"word {6 + len(before)} 'encrypt_enable' is refused: encrypted weights are not supported"


@pytest.mark.parametrize("chips", [1, 8, 10, 20, 100])
def test_chip_num(parse: Any, chips: int) -> None:
    run = parse(*BOOLQ, "W", str(chips))
    assert (run.chips, run.nodes) == (chips, None)


@pytest.mark.parametrize("word", ["0", "-1", "eight", "8,8", "1.0"])
def test_chip_num_that_is_none(parse: Any, word: str) -> None:
    said = refusal(parse, *BOOLQ, "W", word)
    assert said.startswith(f"word 6 {word!r} is not known there; expected: chip_num, the number of ranks")
    assert refusal(parse, *BOOLQ, "W").startswith("word 6 is missing; expected there: chip_num, ")


@pytest.mark.parametrize("words", [["[-1,8,1,-1,1,-1,-1,1]"], ["[-1,", "8,", "1,-1,1,-1,-1,1]"]])
def test_parallel_sizes(parse: Any, words: list[str]) -> None:
    assert parse(*BOOLQ, "W", "8", *words).parallel == (-1, 8, 1, -1, 1, -1, -1, 1)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("[1,8]", "word 7 '[1,8]' holds 2 numbers, 8 belong there: [dp,tp,sp,moe_tp,moe_ep,pp,microbatch,cp]"),
        ("[2,4,1,8,1,1,1,1]", "word 7 '[2,4,1,8,1,1,1,1]': dp 2 is not supported; with 8 ranks it is -1 or 1"),
        ("[1,4,1,8,1,1,1,1]", "word 7 '[1,4,1,8,1,1,1,1]': tp 4 is not supported; with 8 ranks it is -1 or 8"),
        ("[1,8,1,1,8,1,1,1]", "word 7 '[1,8,1,1,8,1,1,1]': moe_tp 1 is not supported; with 8 ranks it is -1 or 8"),
        ("[1,8,1,8,8,1,1,1]", "word 7 '[1,8,1,8,8,1,1,1]': moe_ep 8 is not supported; with 8 ranks it is -1 or 1"),
    ],
)
def test_parallel_sizes_that_are_refused(parse: Any, word: str, said: str) -> None:
    assert refusal(parse, *BOOLQ, "W", "8", word) == said


def test_max_position_embedding(parse: Any) -> None:
    assert parse(*BOOLQ, "W", "8", "4096").max_position_embedding == 4096
    assert parse(*BOOLQ, "W", "8", "[-1,-1,-1,-1,-1,-1,-1,-1]", "10").max_position_embedding == 10


@pytest.mark.parametrize(
    ("words", "position", "expected"),
    [
        (["more"], 7, "a list [dp,tp,sp,moe_tp,moe_ep,pp,microbatch,cp], max_position_embedding, a number, options"),
        (["[-1,-1,-1,-1,-1,-1,-1,-1]", "more"], 8, "max_position_embedding, a number, options such as --limit"),
        (["4096", "more"], 8, "options such as --limit"),
    ],
)
def test_words_too_many(parse: Any, words: list[str], position: int, expected: str) -> None:
    said = refusal(parse, *BOOLQ, "W", "8", *words)
    assert said.startswith(f"word {position} 'more' is not known there; expected: {expected}")


def test_a_word_is_missing_anywhere(parse: Any) -> None:
    """Each beginning of a command names the position after it."""
    words = ["pa_fp16", "performance_maxbs", "[[8,4]]", "[1,64]", "50", "deepseek", "W", "8"]
    for count in range(len(words)):
        assert refusal(parse, *words[:count]).startswith(f"word {count + 1} is missing; expected there: ")
