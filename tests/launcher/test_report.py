"""What run_pa prints and writes."""

from __future__ import annotations

import csv
import io
import logging
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from atb_models import env
from atb_models.engine.expert_counts import ExpertCounts
from atb_models.errors import AtbError, ConfigError
from atb_models.files import written_whole
from atb_models.launcher.benchmark import RunTimings, write_benchmark
from atb_models.launcher.logits_saver import logits_saver
from atb_models.launcher.report import AnswerPrinter, save_token_ids
from atb_models.launcher.results import check_results
from atb_models.outputs import RequestOutput

COLUMNS = [
    "batch_size", "input_seq_len", "output_seq_len", "e2e_time(ms)", "prefill_time(ms)", "decoder_token_time(ms)",
    "prefill_count", "prefill_token_times", "decode_token_times", "prefill_average_time(ms)",
]  # fmt: skip


def output(index, text, ids=(5, 6), reason="stop", delta=""):
    return RequestOutput(index, [1, 2, 3], list(ids), text, reason, delta=delta)


def printed(outputs, has_text=True):
    out = io.StringIO()
    printer = AnswerPrinter(out, has_text=has_text)
    for one in outputs:
        printer.update(one)
    return out.getvalue()


def test_answers_come_in_the_requests_order():
    assert printed([output(1, "two\nlines", ids=[4]), output(0, " Sundar Pichai.", ids=[4, 5, 6])]) == (
        "Answer[0]: Sundar Pichai.\nGenerate[0] token num: 3\nAnswer[1]: two\nlines\nGenerate[1] token num: 1\n"
    )


def test_empty_answer():
    assert printed([output(0, " ", ids=[2])]) == "Answer[0]: \nGenerate[0] token num: 1\n"


def test_ids_are_the_answer_without_a_tokenizer():
    assert printed([output(0, "", ids=[7, 8, 2])], has_text=False) == "Answer[0]: 7,8,2\nGenerate[0] token num: 3\n"


def test_logprobs_follow():
    one = output(0, "a", ids=[7])
    one.logprobs = [{7: -0.5, 3: -1.5}]
    assert printed([one]).splitlines()[-1] == 'Logprobs[0]: [{"7": -0.5, "3": -1.5}]'


def test_stream_prints_the_first_unfinished_request():
    out = io.StringIO()
    printer = AnswerPrinter(out, has_text=True)
    seen = []
    for one in (
        output(0, " a", reason=None, delta=" a"),
        output(1, "x", reason=None, delta="x"),
        output(1, "x y", delta=" y"),
        output(0, " a b", delta=" b"),
        output(2, "", reason=None, delta=""),
        output(2, "z", reason="length", delta="z"),
    ):
        printer.update(one)
        seen.append(out.getvalue())
    end = "\nGenerate[{0}] token num: 2\n"
    first = "Answer[0]: a b" + end.format(0) + "Answer[1]: x y" + end.format(1)
    assert seen == ["Answer[0]: a"] * 3 + [first] * 2 + [first + "Answer[2]: z" + end.format(2)]


def test_token_ids_are_saved(tmp_path):
    save_token_ids(tmp_path / "new", [output(0, "a", ids=[7, 8]), output(1, "b")])
    assert (tmp_path / "new" / "output_ids_0.txt").read_text() == "7 8"
    assert torch.load(tmp_path / "new" / "input_ids_1.pth").tolist() == [1, 2, 3]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}
    assert modes == dict.fromkeys(("input_ids_0.pth", "input_ids_1.pth", "output_ids_0.txt", "output_ids_1.txt"), 0o640)


def test_logits_are_saved_by_the_tokens_produced(tmp_path):
    def row(produced, num_logits):
        return SimpleNamespace(num_logits=num_logits, seq=SimpleNamespace(output_token_ids=[0] * produced))

    save = logits_saver(tmp_path / "logits")
    save([row(0, 0)], torch.zeros(0, 4), [])
    assert not (tmp_path / "logits").exists()
    save([row(9, 0), row(3, 1), row(5, 1)], torch.ones(2, 4, dtype=torch.float16), [1, 2])
    saved = torch.load(tmp_path / "logits" / "logits_3.pth")
    assert (saved.dtype, saved.tolist()) == (torch.float32, [[1.0] * 4] * 2)


TIMINGS = RunTimings(2, 7, 100, prefill_s=(0.5, 0.25), decode_s=(0.01, 0.03))


def test_benchmark_csv(tmp_path, caplog):
    path = tmp_path / "result" / "benchmark.csv"
    with caplog.at_level(logging.INFO, "atb_models"):
        write_benchmark(TIMINGS, path)
    with path.open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert list(row) == COLUMNS
    assert list(row.values()) == [
        "2", "7", "100", " 790.00", " 750.00", " 20.00", "2", "0.500000,0.250000", "0.010000,0.030000", " 375.00",
    ]  # fmt: skip
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
    line, rule, *table = caplog.messages
    assert line == (
        "Prefill time: 750.00ms, Prefill average time: 375.00ms, Decode token time: 20.00ms, E2E time: 790.00ms"
    )
    assert "performance dumped" in rule
    assert [len(cells.split("|")) for cells in table] == [len(COLUMNS) - 2 + 2] * 3


def test_benchmark_without_decode_steps(tmp_path):
    assert RunTimings(1, 7, 1, (0.5,), ()).row()["decoder_token_time(ms)"] == " 0.00"


def test_benchmark_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AtbError, match="file/benchmark.csv cannot be written: "):
        write_benchmark(TIMINGS, tmp_path / "file" / "benchmark.csv")


def test_nothing_half_written_is_left(tmp_path):
    target = tmp_path / "result"
    target.write_text("before")
    with pytest.raises(AtbError, match="result cannot be written: disk full"), written_whole(target) as path:
        path.write_text("hal")
        raise RuntimeError("disk full")
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    assert target.read_text() == "before"


def write(target, text):
    with written_whole(target) as path:
        path.write_text(text)


def test_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real" / "result")
    for text in ("new", "newer"):
        write(link, text)
        assert link.is_symlink()
        assert (tmp_path / "real" / "result").read_text() == text
    assert os.listdir(tmp_path / "real") == ["result"]


def test_pipe_is_written_not_replaced(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe, 0o600)
    link.symlink_to(pipe)
    for target in (pipe, link):
        seen = []
        reader = threading.Thread(target=lambda seen=seen: seen.append(pipe.read_text()), daemon=True)
        reader.start()
        write(target, "contents")
        reader.join(10)
        assert seen == ["contents"]
        assert stat.S_ISFIFO(pipe.stat().st_mode) and stat.S_IMODE(pipe.stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_file_behind_stdout_keeps_what_is_printed(tmp_path):
    out = tmp_path / "out"
    program = (
        "import pathlib, sys\n"
        "from atb_models.files import written_whole\n"
        "print('answer', flush=True)\n"
        f"with written_whole(pathlib.Path({str(out)!r})) as path: path.write_text('result\\n')\n"
    )
    with out.open("ab") as stream:
        subprocess.run([sys.executable, "-c", program], stdout=stream, check=True)
    assert out.read_text() == "answer\nresult\n"


def test_folder_is_no_result_file(tmp_path):
    with pytest.raises(AtbError, match="cannot be written: "):
        write(tmp_path, "text")


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(Path("~/result"), "text")
    assert (tmp_path / "result").read_text() == "text"


@pytest.mark.parametrize(
    ("switch", "variable"),
    [
        ("ATB_LLM_BENCHMARK_ENABLE", "ATB_LLM_BENCHMARK_FILEPATH"),
        ("ATB_LLM_LOGITS_SAVE_ENABLE", "ATB_LLM_LOGITS_SAVE_FOLDER"),
        ("ATB_LLM_TOKEN_IDS_SAVE_ENABLE", "ATB_LLM_TOKEN_IDS_SAVE_FOLDER"),
        ("MINDIE_ENABLE_EXPERT_HOTPOT_GATHER", "MINDIE_EXPERT_HOTPOT_DUMP_PATH"),
    ],
)
@pytest.mark.usefixtures("clean_environ")
def test_place_without_a_folder_is_found_before_the_run(tmp_path, monkeypatch, switch, variable):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, "~/file/deep/place")
    check_results()
    monkeypatch.setenv(switch, "1")
    with pytest.raises(ConfigError, match=f"{variable}: {tmp_path}/file is no folder.*{tmp_path}/file/deep"):
        check_results()
    monkeypatch.setenv(variable, "~/new/place")
    check_results()
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.usefixtures("clean_environ")
def test_benchmark_file_that_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ATB_LLM_BENCHMARK_ENABLE", "1")
    monkeypatch.setenv("ATB_LLM_BENCHMARK_FILEPATH", str(tmp_path))
    with pytest.raises(ConfigError, match=f"ATB_LLM_BENCHMARK_FILEPATH: {tmp_path} is a folder"):
        check_results()


def test_expert_counts_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = env.PATH.parse("~/counts")
    ExpertCounts({0: torch.tensor([2, 5])}, folder).save()
    assert (tmp_path / "counts" / "experts.csv").read_text().split() == ["layer,expert,tokens", "0,0,2", "0,1,5"]
    with pytest.raises(AtbError, match="experts.csv cannot be written: "):
        ExpertCounts({}, tmp_path / "counts" / "experts.csv").save()
