"""CMMLU: the most probable letter, by hand and by the embedded model."""

from __future__ import annotations

from pathlib import Path

import pytest

from atb_models import LLM
from atb_models.errors import ConfigError
from modeltest.accuracy.data import find
from modeltest.accuracy.sets import cmmlu
from tests.harness.stand_in import StandIn, asked, run_of

HEAD = ",Question,A,B,C,D,Answer\n"


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    for part, rows in (
        ("test", "0,冰是,热的,冷的,软的,甜的,B\n1,糖是,热的,冷的,软的,甜的,D\n"),
        ("dev", "0,火是,热的,冷的,软的,甜的,A\n"),
    ):
        (tmp_path / part).mkdir()
        (tmp_path / part / "plain_things.csv").write_text(HEAD + rows, encoding="utf-8")
    return find("CMMLU", cmmlu.SOURCE, tmp_path)


def test_the_most_probable_letter_is_the_answer(paths: list[Path]) -> None:
    scores = {"A": -3.0, "B": -1.0, "C": -2.0, "D": -1.0}  # of equal ones the first
    model = StandIn(logprob=lambda before, letter: scores[letter])
    answers = asked(cmmlu.SET, model, paths, run_of("full_CMMLU", shots=1))
    assert [(answer.given, answer.correct) for answer in answers] == [("B", True), ("B", False)]
    assert answers[0].logprobs == scores and model.params[0].max_tokens == 1
    assert model.prompts[0][0] == (
        "The following are multiple choice questions (with answers) about plain things.\n\n"
        "火是\nA. 热的\nB. 冷的\nC. 软的\nD. 甜的\nAnswer: A\n\n冰是\nA. 热的\nB. 冷的\nC. 软的\nD. 甜的\nAnswer:"
    )


def test_a_row_that_lacks_its_last_cell_is_named(paths: list[Path]) -> None:
    """The first column, which has no name, counts."""
    paths[0].write_text(HEAD + "0,冰是,热的,冷的,软的,甜的\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="plain_things.csv, line 2 has 6 cells where 7 are needed"):
        cmmlu.read(paths, run_of("full_CMMLU", shots=0))


def test_the_letters_of_the_embedded_model_are_those_of_its_logits(paths: list[Path]) -> None:
    run = run_of("full_CMMLU", shots=0)
    with LLM(dtype="fp32", max_seq_len=512, prefix_cache=False) as llm:
        answers = cmmlu.answer(llm, cmmlu.read(paths, run), run)
        assert llm.tokenizer is not None
        ids = {letter: llm.tokenizer.encode(f"It is {letter}", add_special_tokens=False)[-1] for letter in "ABCD"}
        for answer in answers:
            last = llm.prompt_logits(answer.input_token_ids)[-1].double().log_softmax(-1)
            expected = {letter: float(last[token]) for letter, token in ids.items()}
            assert answer.logprobs == pytest.approx(expected, abs=2e-4)
            assert answer.given == max(expected, key=expected.__getitem__)
