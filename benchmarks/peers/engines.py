"""The engines that are measured: each runs outside this process and is asked for rates."""

from __future__ import annotations

import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from peers.cases import CASES, CONTEXT, LONGEST, NEW, Case
from peers.dtypes import DTYPES, Stored

WORKERS = Path(__file__).parent / "workers"
LARGEST = max(CASES, key=lambda case: case.sequences)
SEQUENCES = LARGEST.sequences
WARM_UP = 4  # tokens of each sequence
STEP_TOKENS = max(case.sequences * case.prompt for case in CASES)
ATTEMPTS = 3  # llama-batched-bench prints from a thread of its own, and may end before the last line is out
LAST = 400  # characters of what a failed program printed last


class PeerError(Exception):
    """What an engine, or the lack of it, gives instead of a result. said: all that its program has printed."""

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said


class Unable(Exception):
    """The engine has no such model, which is no failure."""


class Engine(Protocol):
    name: str

    def stored(self, dtype: str) -> Stored | None:
        """How it holds a model of one of DTYPES; None where it cannot."""

    def start(self, folder: Path, dtype: str) -> str:
        """Be ready to run the model in `folder` -> what the engine calls its version. Raises PeerError and Unable."""

    def warm_up(self) -> None:
        """Before the first rate. Raises PeerError."""

    def rate(self, case: Case) -> float:
        """Tokens per second. Raises PeerError."""

    def close(self) -> None:
        """End its processes."""


def prompts(case: Case, vocab_size: int) -> list[list[int]]:
    """Random, and the same for each engine that takes prompts."""
    source = random.Random(case.prompt)
    return [[source.randrange(vocab_size) for _ in range(case.prompt)] for _ in range(case.sequences)]


class Worker:
    """A program of `workers/` in an interpreter of its own, which holds the model from `start` to `close`."""

    def __init__(
        self, name: str, python: str, script: str, threads: int, timeout: float, *, quantizes: bool = False
    ) -> None:
        self.name, self.timeout, self.quantizes = name, timeout, quantizes
        self._command = [python, str(WORKERS / script)]
        self._environ = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if not os.environ.get("HF_HUB_OFFLINE"):
            self._environ["HF_HUB_OFFLINE"] = "1"
        self._process: subprocess.Popen[bytes] | None = None

    def stored(self, dtype: str) -> Stored | None:
        one = DTYPES[dtype]
        return one.python if self.quantizes or one.quantize is None else None

    def start(self, folder: Path, dtype: str) -> str:
        """dtype: also fp32."""
        self._vocab_size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        self._said = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env=self._environ,
                start_new_session=True,
            )
        except OSError as error:
            self._said.close()
            raise PeerError(str(error)) from error
        limits = {"sequences": SEQUENCES, "longest": LONGEST, "step_tokens": STEP_TOKENS}
        one = DTYPES.get(dtype)
        how = {"dtype": one.dtype if one else dtype} | ({"quantize": one.quantize} if one and one.quantize else {})
        return str(self.ask("load", folder=str(folder), **how, **limits))

    def warm_up(self) -> None:
        self.ask("run", prompts=prompts(LARGEST, self._vocab_size), new=WARM_UP)

    def rate(self, case: Case) -> float:
        return float(self.ask("run", prompts=prompts(case, self._vocab_size), new=case.new))

    def ask(self, method: str, **arguments: Any) -> Any:
        """What a method of the worker's engine gives. Raises PeerError where it fails, ends or takes too long."""
        if self._process is None:
            raise PeerError("not running")
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": method, "with": arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended, and reading tells so
        line = self._line(self._process.stdout.fileno())
        if not line:
            status = self._process.wait()
            raise PeerError(f"ended with status {status}: {self._last_said()}")
        reply = json.loads(line)
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply["gives"]

    def _line(self, file: int) -> bytes:
        """The next line of the reply, empty at its end."""
        line, until = b"", monotonic() + self.timeout
        while not line.endswith(b"\n"):
            if not select.select([file], [], [], max(0.0, until - monotonic()))[0]:
                self._kill()
                raise PeerError(f"no answer within {self.timeout:g} s")
            piece = os.read(file, 1 << 16)
            if not piece:
                return b""
            line += piece
        return line

    def _last_said(self) -> str:
        self._said.seek(0)
        return last_words(self._said.read().decode(errors="replace"))

    def _kill(self) -> None:
        assert self._process is not None
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()

    def close(self) -> None:
        """Also what the worker has started itself."""
        if self._process is None:
            return
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        self._kill()
        self._process.stdout.close()
        self._said.close()
        self._process = None


class LlamaCpp:
    """llama-bench and llama-batched-bench of llama.cpp or of a fork, in one folder; each run loads the file anew.

    Both warm up by themselves. The second decodes after prompts of CONTEXT tokens, as the others do.
    """

    def __init__(self, name: str, folder: Path, threads: int, timeout: float) -> None:
        self.name, self.folder, self.threads, self.timeout = name, folder.resolve(), threads, timeout
        self._common = ["-t", str(threads), "-b", str(STEP_TOKENS), "-ub", str(STEP_TOKENS)]

    def stored(self, dtype: str) -> Stored | None:
        return DTYPES[dtype].gguf

    def start(self, folder: Path, dtype: str) -> str:
        self._file = gguf_path(folder, dtype).resolve()
        try:
            said = json.loads(self._bench(8))[0]
        except PeerError:
            self._check_architecture()
            raise
        return f"build {said['build_number']} ({said['build_commit']})"

    def warm_up(self) -> None:
        """The file is in the page cache by now, and each run warms up by itself."""

    def rate(self, case: Case) -> float:
        if case.is_prefill:
            return float(json.loads(self._bench(case.prompt))[0]["avg_ts"])
        size = case.sequences * (CONTEXT + NEW)
        counts = ["-npp", str(case.prompt), "-ntg", str(case.new), "-npl", str(case.sequences)]
        for _ in range(ATTEMPTS):
            arguments = ["-m", str(self._file), "-c", str(size), *self._common, *counts]
            said = self.run("llama-batched-bench", *arguments, log=True)  # where ik_llama.cpp's prints the table
            if (found := decoding_rate(said, case)) is not None:
                return found
        raise PeerError(f"llama-batched-bench printed no row of this case: {last_words(said)}")

    def _check_architecture(self) -> None:
        """Raises Unable where it is unknown, which llama-bench does not tell."""
        try:
            self.run("llama-batched-bench", "-m", str(self._file), "-c", "64", "-npp", "1", "-ntg", "1", "-npl", "1")
        except PeerError as error:
            if unknown := unknown_architecture(error):
                raise Unable(unknown) from error

    def _bench(self, prompt: int) -> str:
        work = ["-p", str(prompt), "-n", "0", "-r", "1", "-o", "json"]
        return self.run("llama-bench", "-m", str(self._file), *self._common, *work)

    def run(self, program: str, *arguments: str, log: bool = False) -> str:
        """What a program prints to its standard output, and with `log` to stderr behind it. Raises PeerError.

        It runs in a folder of its own, which takes the log file that some write.
        """
        if not (self.folder / program).is_file():
            raise PeerError(f"{self.folder / program} is missing")
        command = [str(self.folder / program), *arguments]
        try:
            with tempfile.TemporaryDirectory() as own:
                ended = subprocess.run(
                    command, cwd=own, capture_output=True, text=True, errors="replace", timeout=self.timeout
                )
        except subprocess.TimeoutExpired as error:
            raise PeerError(f"{program}: no end within {self.timeout:g} s") from error
        except OSError as error:
            raise PeerError(str(error)) from error
        if ended.returncode:
            told = f"{program} ended with status {ended.returncode}: {last_words(ended.stderr)}"
            raise PeerError(told, ended.stdout + ended.stderr)
        return ended.stdout + (ended.stderr if log else "")

    def close(self) -> None:
        """Nothing runs between the calls."""


def unknown_architecture(error: PeerError) -> str | None:
    """What llama.cpp's programs say of a file of a model that they do not have."""
    found = re.search(r"unknown model architecture: '\w+'", error.said)
    return found[0] if found else None


def decoding_rate(said: str, case: Case) -> float | None:
    """S_TG of the case's row in llama-batched-bench's table (PP, TG, B, N_KV, T_PP, S_PP, T_TG, S_TG, T, S)."""
    for row in re.findall(r"^\|(.*)\|\s*$", said, re.MULTILINE):
        cells = [cell.strip() for cell in row.split("|")]
        if cells[:3] == [str(case.prompt), str(case.new), str(case.sequences)]:
            return float(cells[7])
    return None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def gguf_path(folder: Path, dtype: str) -> Path:
    return folder / f"{dtype}.gguf"


def last_words(said: str) -> str:
    """The end of what a program printed, in one line."""
    return " ".join(said.split())[-LAST:] or "it printed nothing"


def close_all(engines: Sequence[Engine]) -> None:
    for engine in engines:
        engine.close()
