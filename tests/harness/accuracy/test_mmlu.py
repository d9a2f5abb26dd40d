"""MMLU and C-Eval: files, examples, and the letter found in what the model writes."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from atb_models.errors import ConfigError
from modeltest.accuracy import run_accuracy
from modeltest.accuracy.data import find, say_differences
from modeltest.accuracy.run import collect, fingerprint
from modeltest.accuracy.sets import ceval, mmlu
from modeltest.accuracy.sets.multiple_choice import first_letter, last_letter
from modeltest.command.cases import Options
from tests.harness.stand_in import StandIn, asked, run_of

TREES = '"Which has leaves, mostly?",a tree,a stone,a cloud,a lamp,A\n'
STONES = "Which sinks?,cork,a stone,oil,a leaf,B\n"
EXAMPLES = "What is wet?,sand,ash,water,salt,C\nWhat is hot?,ice,snow,rain,fire,D\n"
SHOWN = "Which has leaves, mostly?\nA. a tree\nB. a stone\nC. a cloud\nD. a lamp"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """MMLU's layout: one subject with two questions and two examples."""
    for part, text in (("test", TREES + STONES), ("dev", EXAMPLES)):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"plain_things_{part}.csv").write_text(text, encoding="utf-8")
    return tmp_path


def write_ceval(folder: Path) -> Path:
    heads = {"val": "id,question,A,B,C,D,answer\n", "dev": "id,question,A,B,C,D,answer,explanation\n"}
    for part, row in (("val", "0,冰是,热的,冷的,软的,甜的,B\n"), ("dev", '0,火是,热的,冷的,软的,甜的,A,"因为\n热"\n')):
        (folder / part).mkdir()
        (folder / part / f"plain_things_{part}.csv").write_text(heads[part] + row, encoding="utf-8-sig")
    return folder


def test_examples_stand_before_the_question_in_the_published_form(folder: Path) -> None:
    model = StandIn(lambda prompt: " A. a tree" if "leaves" in prompt else "\nC")
    run = run_of("full_MMLU", shots=1)
    first, second = asked(mmlu.SET, model, find("MMLU", mmlu.SOURCE, folder), run)
    assert model.prompts[0][0] == (
        "The following are multiple choice questions (with answers) about plain things.\n\n"
        "What is wet?\nA. sand\nB. ash\nC. water\nD. salt\nAnswer: C\n\n"
        f"{SHOWN}\nAnswer:"
    )
    assert model.params[0].max_tokens == 20
    assert [(answer.given, answer.correct) for answer in (first, second)] == [("A", True), ("C", False)]


def test_without_examples_the_model_may_reason(folder: Path) -> None:
    model = StandIn(lambda prompt: "A stone sinks. The answer is (B).")
    answers = asked(mmlu.SET, model, find("MMLU", mmlu.SOURCE, folder), run_of("full_MMLU", shots=0))
    prompt = model.prompts[0][0]
    assert prompt.startswith(SHOWN + "\n") and "step by step" in prompt and "examples" not in prompt
    assert model.params[0].max_tokens == 256
    assert [(answer.given, answer.correct) for answer in answers] == [("B", False), ("B", True)]


def test_ceval_asks_its_validation_part(tmp_path: Path) -> None:
    model = StandIn(lambda prompt: "B" if "with answers" in prompt else "冰不热，答案是 B。")
    paths = find("CEval", ceval.SOURCE, write_ceval(tmp_path))
    for shots in (0, 1):
        [answer] = asked(ceval.SET, model, paths, run_of("full_CEval", shots=shots))
        assert answer.correct and answer.key == "plain_things_val.csv:1"
    assert "步" in model.prompts[0][0]
    assert model.prompts[1][0].endswith(
        "about plain things.\n\n火是\nA. 热的\nB. 冷的\nC. 软的\nD. 甜的\nAnswer: A\n\n"
        "冰是\nA. 热的\nB. 冷的\nC. 软的\nD. 甜的\nAnswer:"
    )


@pytest.mark.parametrize(("text", "letter"), [(" B", "B"), ("\n\nD. lamp", "D"), ("The B", ""), ("E", ""), ("", "")])
def test_the_first_letter(text: str, letter: str) -> None:
    assert first_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is C.", "C"),
        ("the answer is: (D)", "D"),
        ("Answer: B, because A is wrong.", "B"),
        ("At first the answer is A. No, the answer is D.", "D"),
        ("The answer is Carbon.", ""),
        ("A dog is no B. Vitamin", "B"),
        ("A dog barks", ""),
        ("(A) or (C)", "C"),
        ("so it must be\nC", "C"),
        ("因此答案是：D", "D"),
        ("所以选C", "C"),
        ("选择C这一项", "C"),
        (r"The answer is $\boxed{\text{C}}$, not A.", "C"),
        ("The answer is option C (a cloud)", "C"),
        ("", ""),
    ],
)
def test_the_last_letter(text: str, letter: str) -> None:
    assert last_letter(text) == letter


@pytest.mark.parametrize(("shots", "says"), [(3, "3 shots, but .*plain_things_dev.csv has 2 rows")])
def test_too_many_shots_are_refused(folder: Path, shots: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        mmlu.read(find("MMLU", mmlu.SOURCE, folder), run_of("full_MMLU", shots=shots))


def test_missing_examples_are_named_where_they_are_needed(folder: Path) -> None:
    (folder / "dev" / "plain_things_dev.csv").unlink()
    paths = find("MMLU", mmlu.SOURCE, folder)
    assert len(mmlu.read(paths, run_of("full_MMLU", shots=0))) == 2
    with pytest.raises(ConfigError, match="plain_things_dev.csv with the examples .* does not exist"):
        mmlu.read(paths, run_of("full_MMLU", shots=1))


@pytest.mark.parametrize(
    ("row", "says"), [("q,a,b,c,d,E\n", "line 1 has the answer 'E'"), ("q,a,b\n", "line 1 has 3 cells where 6")]
)
def test_a_row_of_another_form_is_named(folder: Path, row: str, says: str) -> None:
    (folder / "test" / "plain_things_test.csv").write_text(row, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        mmlu.read(find("MMLU", mmlu.SOURCE, folder), run_of("full_MMLU", shots=0))


def test_a_file_without_its_columns_or_its_text_is_named(tmp_path: Path) -> None:
    paths = find("CEval", ceval.SOURCE, write_ceval(tmp_path))
    paths[0].write_text("id,question,A,B,C,answer\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="has no column D; its columns are id, question"):
        ceval.read(paths, run_of("full_CEval", shots=0))
    paths[0].write_bytes(gzip.compress(b"no text"))
    with pytest.raises(ConfigError, match="plain_things_val.csv is not UTF-8 text: .* at byte 1, in line 1"):
        ceval.read(paths, run_of("full_CEval", shots=0))


def test_a_set_that_is_not_whole_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    say_differences(mmlu.SOURCE, collect(mmlu.SET, run_of("full_MMLU", shots=0), Options(data_dir=folder)).data)
    assert "has 1 of 57 subjects" in caplog.text


def test_other_examples_are_another_run(folder: Path, demo: Path) -> None:
    prints = []
    for example in (EXAMPLES, EXAMPLES.replace("sand", "dust")):
        (folder / "dev" / "plain_things_dev.csv").write_text(example, encoding="utf-8")
        run, options = run_of("full_MMLU", demo, shots=1), Options(data_dir=folder)
        prints.append(fingerprint(collect(mmlu.SET, run, options), 1, run, options, "cpu"))
    assert [name for name in prints[0] if prints[0][name] != prints[1][name]] == ["prompts"]


def test_the_embedded_model_is_scored_by_subject(tmp_path: Path, folder: Path, demo: Path) -> None:
    (folder / "test" / "more_test.csv").write_text(STONES, encoding="utf-8")
    (folder / "dev" / "more_dev.csv").write_text(EXAMPLES, encoding="utf-8")
    options = Options(data_dir=folder, output_dir=tmp_path / "out", device="cpu")
    assert run_accuracy(run_of("full_MMLU", demo, shots=1, batch_sizes=((1, 2),)), options) == 0
    results = tmp_path / "out" / "results" / "CPU" / "precision_test" / "full_MMLU" / "fp16" / "deepseek"
    tables = [(results / f"MMLU_pa_batch{size}_tp1_full_result.csv").read_text("utf-8") for size in (1, 2)]
    assert tables[0] == tables[1]
    rows = [line.split(",") for line in tables[0].splitlines()]
    assert [(row[0], row[3]) for row in rows[1:]] == [
        ("total", "3"),
        ("more_test.csv", "1"),
        ("plain_things_test.csv", "2"),
    ]
    assert int(rows[1][2]) == int(rows[2][2]) + int(rows[3][2])
