"""BoolQ: the prompt, the comparison of yes and no, and the command from outside."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from atb_models import LLM, RequestOutput, SamplingParams
from atb_models.demo import boolq_path
from atb_models.errors import AtbError, ConfigError, RequestError
from modeltest.accuracy import run_accuracy
from modeltest.accuracy.data import find, say_differences
from modeltest.accuracy.questions import Asked, Question, ScoredAnswer
from modeltest.accuracy.run import answer_all, collect, fingerprint
from modeltest.accuracy.sets import boolq
from modeltest.command.cases import Options
from tests.harness.stand_in import StandIn, asked, run_of

RUN = run_of("full_BoolQ")
ROW = {"title": "Romar", "question": "is there a mill", "passage": "There is one.", "answer": True}
PLACE = Path("CPU") / "precision_test" / "full_BoolQ" / "fp16" / "deepseek"


@pytest.fixture(scope="module")
def llm() -> LLM:
    """The embedded checkpoint in float32."""
    with LLM(dtype="fp32", max_seq_len=3584, max_batch_size=8, prefix_cache=False) as llm:
        yield llm


def command(*words: str, root: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """`python -m modeltest` with these words, from outside."""
    paths = os.pathsep.join([str(root), str(root / "tests")])
    return subprocess.run(
        [sys.executable, "-m", "modeltest", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "ASCEND_RT_VISIBLE_DEVICES": "", **environ},
        timeout=300,
    )


def rows_file(folder: Path, *rows: object) -> Path:
    path = folder / "dev.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def margins(answers: list[ScoredAnswer]) -> list[float]:
    return [answer.logprobs["yes"] - answer.logprobs["no"] for answer in answers if answer.logprobs]


def test_the_prompt_is_the_published_one() -> None:
    assert boolq.prompt(ROW) == "Romar -- There is one.\nQuestion: is there a mill?\nAnswer:"


@pytest.mark.parametrize(("yes", "no", "given"), [(-1.0, -2.0, "True"), (-2.0, -1.0, "False"), (-1.0, -1.0, "False")])
def test_only_a_more_probable_yes_is_true(tmp_path: Path, yes: float, no: float, given: str) -> None:
    # the last characters of "yes" and "no" are the stand-in's tokens of the words
    model = StandIn(logprob=lambda before, letter: {"s": yes, "o": no}[letter])
    [answer] = asked(boolq.SET, model, [rows_file(tmp_path, ROW)], RUN)
    assert (answer.given, answer.correct) == (given, given == "True")
    assert answer.logprobs == {"yes": yes, "no": no}
    assert model.params[0].max_tokens == 1 and model.prompts == [[boolq.prompt(ROW)]]


def test_chat_puts_the_same_text_into_the_template(tmp_path: Path) -> None:
    model = StandIn()
    asked(boolq.SET, model, [rows_file(tmp_path, ROW)], run_of("full_BoolQ", chat=True))
    assert model.prompts == [[f"<user>{boolq.prompt(ROW)}<assistant>"]]


def test_a_model_that_overflows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AtbError, match="log-probability of nan; try the other dtype"):
        asked(boolq.SET, StandIn(logprob=lambda a, b: float("nan")), [rows_file(tmp_path, ROW)], RUN)


@pytest.mark.parametrize(
    ("line", "says"), [({**ROW, "answer": "yes"}, "needs a field answer of type bool"), ([], "needs a field title")]
)
def test_a_row_of_another_form_is_named(tmp_path: Path, line: object, says: str) -> None:
    with pytest.raises(ConfigError, match=f"dev.jsonl, line 2 {says}"):
        boolq.read([rows_file(tmp_path, ROW, line)], RUN)


def test_all_rows_of_the_published_file(shared: Path) -> None:
    [path] = find("BoolQ", boolq.SOURCE, shared / "data" / "boolq")
    questions = boolq.read([path], RUN)
    assert len(questions) == 3270 and len({question.key for question in questions}) == 3270
    assert sum(question.golden == "True" for question in questions) == 2033
    assert hashlib.sha256(path.read_bytes()).hexdigest() == boolq.SOURCE.sha256["dev.jsonl"]


def test_a_batch_that_fails_is_an_error_and_no_answer(tmp_path: Path) -> None:
    class Failing(StandIn):
        def generate(
            self, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]
        ) -> list[RequestOutput]:
            raise RequestError("prompt 1 is too long")

    questions = boolq.read([rows_file(tmp_path, ROW, ROW, ROW)], RUN)
    with pytest.raises(RequestError, match="questions dev.jsonl:1 to dev.jsonl:2: prompt 1 is too long"):
        answer_all(Asked(boolq.SET, questions, []), Failing(), 2, RUN, NoJournal())  # type: ignore[arg-type]


class NoJournal:
    """Of a run that has answered nothing."""

    batches: list[object] = []


def compared(llm: LLM, questions: list[Question]) -> float:
    """The largest difference of yes - no to that of an own log-softmax over the logits of the whole prompt."""
    assert llm.tokenizer is not None
    words = {word: llm.tokenizer.encode(f"So it is {word}", add_special_tokens=False)[-1] for word in ("yes", "no")}
    assert [llm.tokenizer.decode([token]) for token in words.values()] == [" yes", " no"]
    answers = [one for start in range(0, len(questions), 8) for one in boolq.answer(llm, questions[start:][:8], RUN)]
    differences = []
    for answer, margin in zip(answers, margins(answers), strict=True):
        last = llm.prompt_logits(answer.input_token_ids)[-1].double().log_softmax(-1)
        differences.append(abs(margin - float(last[words["yes"]] - last[words["no"]])))
    return max(differences)


@pytest.mark.parametrize("count", [24, pytest.param(200, marks=pytest.mark.full)])
def test_the_margin_is_that_of_the_prompts_logits(llm: LLM, shared: Path, count: int) -> None:
    questions = boolq.read([shared / "data" / "boolq" / "dev.jsonl"], RUN)[:count]
    assert compared(llm, questions) <= 2e-4


def test_the_embedded_set_is_answered_in_chat_form_too(llm: LLM) -> None:
    questions = boolq.read([boolq_path() / "dev.jsonl"], RUN)[:40]
    answers = boolq.answer(llm, questions, run_of("full_BoolQ", chat=True))
    assert sum(answer.correct for answer in answers) >= 39
    assert llm.tokenizer is not None
    assert "User: Romar -- Romar is" in llm.tokenizer.decode(answers[0].input_token_ids)


@pytest.mark.parametrize(("count", "ranks"), [(24, 2), pytest.param(200, 4, marks=pytest.mark.full)])
def test_batch_size_and_ranks_do_not_change_an_answer(shared: Path, count: int, ranks: int) -> None:
    questions = boolq.read([shared / "data" / "boolq" / "dev.jsonl"], RUN)[:count]
    found = []
    for tp, sizes in ((1, (1, 8, 64)), (ranks, (8,))):
        with LLM(dtype="fp16", tp=tp, max_seq_len=3584, max_batch_size=64, prefix_cache=False) as llm:
            for size in sizes:
                batches = [questions[start : start + size] for start in range(0, count, size)]
                found.append([answer for batch in batches for answer in boolq.answer(llm, batch, RUN)])
    first, *others = found
    clear = [abs(margin) > 0.05 for margin in margins(first)]
    assert sum(clear) > count / 2
    for other in others:
        assert all(a.given == b.given for a, b, is_clear in zip(first, other, clear, strict=True) if is_clear)
        # not the largest: a router's near tie that falls the other way changes an expert, and a margin by up to 1
        assert median(abs(a - b) for a, b in zip(margins(first), margins(other), strict=True)) < 0.02


@pytest.fixture(scope="module")
def finished(root: Path, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The command on the embedded set: its output folder and what it printed."""
    output = tmp_path_factory.mktemp("boolq")
    ended = command(
        "pa_fp16", "full_BoolQ", "8", "deepseek", str(demo), "1", "--device", "cpu",
        "--data_dir", str(boolq_path()), "--output_dir", str(output), root=root,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return output, ended.stdout


def test_the_embedded_set_scores_what_its_readme_says(root: Path, finished: tuple[Path, str]) -> None:
    output, printed = finished
    assert "99.7 % of `boolq/dev.jsonl` (n = 600" in (root / "atb_models" / "demo" / "README.md").read_text("utf-8")
    lines = (output / "results" / PLACE / "BoolQ_pa_batch8_tp1_full_result.csv").read_text("utf-8").splitlines()
    assert lines == [
        "file_name,value,correct,sum",
        "total,0.9966666666666667,598,600",
        "dev.jsonl,0.9966666666666667,598,600",
    ]
    assert "| BoolQ | 8 | 0.9967 | 598 | 600 |" in printed.splitlines()


def test_the_debug_file_has_a_row_for_each_question(finished: tuple[Path, str]) -> None:
    [path] = (finished[0] / "debug" / PLACE).glob("BoolQ_pa_batch8_tp1_debug_*.csv")
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 600
    assert list(rows[0]) == [
        "key", "queries", "input_token_ids", "output_token_ids", "test_result", "golden_result", "pass",
    ]  # fmt: skip
    assert sum(row["pass"] == "True" for row in rows) == 598
    assert rows[0]["queries"].startswith("Romar -- Romar is") and json.loads(rows[0]["input_token_ids"])


def test_the_record_has_data_settings_and_every_margin(finished: tuple[Path, str]) -> None:
    path = finished[0] / "results" / PLACE / "BoolQ_pa_batch8_tp1_full_result.json"
    document = json.loads(path.read_text("utf-8"))
    found = document["results"]
    digest = hashlib.sha256((boolq_path() / "dev.jsonl").read_bytes()).hexdigest()
    assert found["data"] == [{"file": "dev.jsonl", "sha256": digest, "rows": 600}]
    assert (found["n"], found["correct"], found["scored"]) == (600, 598, "logprobs")
    for question in found["questions"]:
        yes, no = question["logprobs"]["yes"], question["logprobs"]["no"]
        assert question["answer"] == str(yes > no)
        assert question["correct"] == (question["answer"] == question["golden"])


@pytest.mark.parametrize(
    ("quantize", "limit"),
    [("w8a16", 60), *(pytest.param(name, 600, marks=pytest.mark.full) for name in ("w8a16", "w4a16", "w8a8_dynamic"))],
)
def test_quantised_weights_have_a_folder_of_their_own_and_score_alike(
    tmp_path: Path, demo: Path, quantize: str, limit: int
) -> None:
    """Within a point of what fp16 scores at 600 questions, which is all."""
    options = Options(data_dir=boolq_path(), output_dir=tmp_path, device="cpu", limit=limit, quantize=quantize)
    assert run_accuracy(run_of("full_BoolQ", demo, batch_sizes=((8,),)), options) == 0
    (path,) = tmp_path.glob(f"results/CPU/precision_test/full_BoolQ/fp16_{quantize}/deepseek/*_result.json")
    document = json.loads(path.read_text("utf-8"))
    assert document["options"]["quantize"] == quantize
    assert document["results"]["n"] == limit and document["results"]["correct"] >= limit - max(2, limit // 100)


def test_another_cache_is_another_run(demo: Path) -> None:
    """Answers of the one are no answers of the other, which --resume would take them for."""
    options = [Options(data_dir=boolq_path(), kv_dtype=name) for name in ("auto", "int8")]
    run = run_of("full_BoolQ", demo)
    plain, int8 = (fingerprint(collect(boolq.SET, run, one), 8, run, one, "cpu") for one in options)
    assert [name for name in plain if plain[name] != int8[name]] == ["kv_dtype"]


def test_missing_data_says_where_it_goes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run_accuracy(RUN, Options(data_dir=tmp_path, output_dir=tmp_path / "out"))
    for part in (f"{tmp_path} has no *.jsonl", boolq.SOURCE.sha256["dev.jsonl"], "CC BY-SA 3.0", "--data_dir"):
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_prompt_that_is_too_long_ends_the_run_without_a_result(demo: Path, tmp_path: Path) -> None:
    short = Options(data_dir=boolq_path(), output_dir=tmp_path, device="cpu",
                    config_overrides={"max_position_embeddings": 16})  # fmt: skip
    with pytest.raises(RequestError, match="questions dev.jsonl:1 to dev.jsonl:1: "):
        run_accuracy(run_of("full_BoolQ", demo), short)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(("sha256", "is_said"), [("aa", True), (boolq.SOURCE.sha256["dev.jsonl"], False)])
def test_another_file_is_taken_with_a_notice(caplog: pytest.LogCaptureFixture, sha256: str, is_said: bool) -> None:
    say_differences(boolq.SOURCE, [{"file": "dev.jsonl", "sha256": sha256}])
    assert ("dev.jsonl is not the published file, its sha256 is aa" in caplog.text) is is_said
