"""TruthfulQA: MC1 and MC2 by hand, and the log-probabilities of whole answers."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from atb_models import LLM
from atb_models.errors import ConfigError
from modeltest.accuracy import run_accuracy
from modeltest.accuracy.data import find
from modeltest.accuracy.journal import AnsweredBatch
from modeltest.accuracy.questions import Asked
from modeltest.accuracy.results import results
from modeltest.accuracy.sets import truthfulqa
from modeltest.command.cases import Options
from tests.harness.stand_in import StandIn, asked, run_of

RUN = run_of("full_TruthfulQA")
ROWS = (
    ("Adversarial", "Food", "Is salt sweet?", "No", "No; Salt is salty.", "Yes; Always.", "https://example.org"),
    ("Adversarial", "Sky", "Is the sky red?", "It is blue.", "It is blue", "Red; Green", "https://example.org"),
)


def write(folder: Path, *rows: tuple[str, ...]) -> list[Path]:
    with (folder / "TruthfulQA.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([truthfulqa.COLUMNS, *rows])
    return find("TruthfulQA", truthfulqa.SOURCE, folder)


def test_mc1_and_mc2() -> None:
    assert truthfulqa.mc1(-1.0, [-2.0, -1.5]) and not truthfulqa.mc1(-1.0, [-1.0]) and not truthfulqa.mc1(-2.0, [-1.0])
    true, wrong = [math.log(0.2), math.log(0.1)], [math.log(0.1)]
    assert truthfulqa.mc2(true, wrong) == pytest.approx(0.75)
    assert truthfulqa.mc2([-2000.0], [-2000.0 - math.log(3)]) == pytest.approx(0.75)  # exp(-2000) is 0 in floats


def test_answers_are_sentences() -> None:
    assert truthfulqa.sentences("No; Salt is salty. ;") == ["No.", "Salt is salty."]


def test_scores_by_hand(tmp_path: Path) -> None:
    # a character costs 1, so an answer costs its length with blank and full stop; the d of "Red" costs 0.1
    model = StandIn(logprob=lambda before, letter: -0.1 if before.endswith(" Re") else -1.0)
    first, second = asked(truthfulqa.SET, model, write(tmp_path, *ROWS), RUN)
    costs = {"No.": -4.0, "Salt is salty.": -15.0, "Yes.": -5.0, "Always.": -8.0}
    assert first.logprobs == costs and (first.given, first.correct) == ("No.", True)
    true, wrong = math.exp(-4) + math.exp(-15), math.exp(-5) + math.exp(-8)
    assert first.measures == pytest.approx({"mc1": 1.0, "mc2": true / (true + wrong)})
    assert second.logprobs == pytest.approx({"It is blue.": -12.0, "Red.": -4.1, "Green.": -7.0})
    assert (second.given, second.correct) == ("Red.", False)
    share = math.exp(-12) / (math.exp(-12) + math.exp(-4.1) + math.exp(-7))
    assert second.measures == pytest.approx({"mc1": 0.0, "mc2": share})


def test_results_have_the_means(tmp_path: Path) -> None:
    questions = truthfulqa.read(write(tmp_path, *ROWS), RUN)
    answers = truthfulqa.answer(StandIn(), questions, RUN)
    found = results(Asked(truthfulqa.SET, questions, []), 2, [AnsweredBatch(answers, 1.0)])
    assert found["mc1"] == found["accuracy"] == 0.5
    assert found["mc2"] == pytest.approx(sum(answer.measures["mc2"] for answer in answers) / 2)


def test_the_record_of_the_embedded_model_has_both_scores(tmp_path: Path, demo: Path) -> None:
    write(tmp_path, *ROWS)
    options = Options(data_dir=tmp_path, output_dir=tmp_path / "out", device="cpu")
    assert run_accuracy(run_of("full_TruthfulQA", demo, batch_sizes=((2,),)), options) == 0
    [path] = tmp_path.glob("out/results/*/*/full_TruthfulQA/*/*/TruthfulQA_pa_batch2_tp1_full_result.json")
    found = json.loads(path.read_text("utf-8"))["results"]
    for name in ("mc1", "mc2"):
        assert found[name] == pytest.approx(sum(question[name] for question in found["questions"]) / 2)
    for question in found["questions"]:
        assert question["answer"] == max(question["logprobs"], key=question["logprobs"].__getitem__)


def test_all_answers_follow_the_primer(tmp_path: Path) -> None:
    model = StandIn()
    asked(truthfulqa.SET, model, write(tmp_path, ROWS[0]), RUN)
    assert len(model.prompts) == 1 and len(model.prompts[0]) == 1 + 2 + 2
    assert all(prompt.startswith("Q: What is human life expectancy") for prompt in model.prompts[0])
    assert model.prompts[0][2].endswith("Barcelona, Spain.\n\nQ: Is salt sweet?\nA: Salt is salty.")


def test_a_question_without_wrong_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 2 needs correct and incorrect answers"):
        truthfulqa.read(write(tmp_path, (*ROWS[0][:5], " ; ", "")), RUN)


@pytest.mark.parametrize("chat", [False, True])
def test_an_answers_log_probability_is_that_of_all_its_tokens(tmp_path: Path, chat: bool) -> None:
    run = run_of("full_TruthfulQA", chat=chat)
    [question] = truthfulqa.read(write(tmp_path, ROWS[0]), run)
    with LLM(dtype="fp32", max_seq_len=1024, max_batch_size=4, prefix_cache=False) as llm:
        [answer] = truthfulqa.answer(llm, [question], run)
        assert answer.logprobs is not None and llm.tokenizer is not None
        text = question.prompt
        if chat:
            text = llm.tokenizer.render_chat([{"role": "user", "content": text}])
        prompt = llm.tokenizer.encode(text, add_special_tokens=not chat)
        for words, logprob in answer.logprobs.items():
            own = llm.tokenizer.encode(f" {words}", add_special_tokens=False)
            rows = llm.prompt_logits([*prompt, *own])[len(prompt) - 1 : -1].double().log_softmax(-1)
            assert logprob == pytest.approx(
                sum(float(row[token]) for row, token in zip(rows, own, strict=True)), abs=2e-3
            )
