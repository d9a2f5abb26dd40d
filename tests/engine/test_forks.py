"""An LLM, or an engine, in a process that was forked from its owner: refused at once; the owner goes on."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from fake_runner import alone, fake_engine

from atb_models import LLM
from atb_models.errors import RequestError

PROGRAM = """
import gc, multiprocessing, os, sys
from atb_models import LLM, SamplingParams
from atb_models.errors import RequestError

ONE = SamplingParams(max_tokens=5)
CALLS = {
    "generate": lambda: llm.generate(["Who is"], ONE),
    "ids": lambda: llm.generate([[1, 2]], ONE),
    "stream": lambda: next(iter(llm.generate(["Who is"], ONE, stream=True))),
    "chat": lambda: llm.chat([[{"role": "user", "content": "hi"}]], ONE),
    "prompt_logits": lambda: llm.prompt_logits([1, 2]),
    "llm.engine": lambda: llm.engine,
    "add_request": lambda: engine.add_request([1, 2]),
    "step": lambda: engine.step(),
    "launch": lambda: engine.launch(),
    "collect": lambda: engine.collect(),
    "abort": lambda: engine.abort(waiting.seq_id),
    "open stream": lambda: next(stream),
    "metrics": lambda: llm.metrics(),
    "reset_timings": lambda: llm.reset_timings(),
    "on_step": lambda: setattr(llm, "on_step", print),
    "check": lambda: llm.check(),
}

def child():
    for name, call in CALLS.items():
        try:
            call()
            print(name, "was answered")
        except RequestError as error:
            assert f"belongs to process {parent} and cannot be used in process {os.getpid()}" in str(error), error
            print(name, "refused")
    stream.close()
    llm.close()
    llm.close()
    with llm:
        pass
    gc.collect()
    sys.stdout.flush()

def fork(end):
    if (pid := os.fork()) == 0:
        child()
        end()
    assert os.waitpid(pid, 0)[1] == 0, "the child failed"

if __name__ == "__main__":
    parent, tp, way = os.getpid(), int(sys.argv[1]), sys.argv[2]
    llm = LLM(device="cpu", tp=tp, kv_blocks=8, max_seq_len=256)
    engine = llm.engine
    want = llm.generate(["Who is"], ONE)[0].token_ids
    waiting = engine.add_request([1, 2, 3], ONE, index=7)
    engine.step()
    engine.abort(waiting.seq_id)
    stream = llm.generate(["Who is"], ONE, stream=True)
    first = next(stream)
    if way == "_exit":
        fork(lambda: os._exit(0))
    elif way == "exit":
        fork(sys.exit)
    else:
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        assert process.exitcode == 0
    rest = list(stream)
    assert first.token_ids == want[:1] and rest[-1].token_ids == want, "the stream that was open"
    assert llm.generate(["Who is"], ONE)[0].token_ids == want
    llm.close()
    print("the owner went on")
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forks") / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.mark.parametrize(("tp", "way"), [(1, "_exit"), (2, "exit"), (2, "multiprocessing")])
def test_a_fork_is_refused_and_the_owner_goes_on(tp: int, way: str, program: Path, root: Path, tmp_path: Path) -> None:
    """Whatever the child does, and however it ends: without the interpreter's clean-up, with it, by multiprocessing."""
    counts = tmp_path / "counts"
    environ = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    environ |= {"MINDIE_ENABLE_EXPERT_HOTPOT_GATHER": "1", "MINDIE_EXPERT_HOTPOT_DUMP_PATH": str(counts)}
    command = [sys.executable, str(program), str(tp), way]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    *refused, last = ended.stdout.splitlines()
    assert last == "the owner went on"
    assert len(refused) == 16 and all(line.endswith(" refused") for line in refused), ended.stdout
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr
    assert len((counts / "experts.csv").read_text().splitlines()) > 10, "the owner's counts, written once by itself"


def test_an_engine_is_refused_too_and_its_owner_goes_on() -> None:
    engine = fake_engine()
    seq = engine.add_request([1, 2, 3])
    if (pid := os.fork()) == 0:
        try:
            engine.step()
        except RequestError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    while engine.has_work():
        engine.step()
    assert seq.output_token_ids == alone([1, 2, 3], len(seq.output_token_ids))


@pytest.mark.parametrize("send", [pickle.dumps, copy.deepcopy])
def test_it_cannot_be_sent_to_another_process(send: object, demo: Path) -> None:
    """multiprocessing pickles what it gives to a process that it starts anew."""
    assert callable(send)
    with LLM(demo, device="cpu", kv_blocks=2) as llm, pytest.raises(RequestError, match="cannot be sent to another"):
        send(llm)
