"""The answers of a run so far, in a file that outlives it: a header, then a line for each batch."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from atb_models.errors import AtbError, ConfigError
from atb_models.files import FILE_MODE, FOLDER_MODE, written_whole
from modeltest.accuracy.questions import ScoredAnswer

logger = logging.getLogger("atb_models.modeltest")
SCHEMA = 1


class AnsweredBatch(NamedTuple):
    """Answered questions and the seconds they took."""

    answers: list[ScoredAnswer]
    seconds: float


class Journal:
    """A context manager. `batches`: those of the earlier run that is continued, in order.

    fingerprint: all that decides the answers; an earlier run that differs in it is not continued (ConfigError naming
    what differs). remarks: what may decide them, a difference is only said. Without `resume` the file starts anew, and
    what it held is in one named .old beside it.
    Raises ConfigError while another process writes it, AtbError where it cannot be written.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any], remarks: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.batches: list[AnsweredBatch] = []
        self._header = {"journal": SCHEMA, "fingerprint": fingerprint, "remarks": remarks}
        try:
            path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, FILE_MODE)
        except OSError as error:
            raise AtbError(f"{path} cannot be written: {error.strerror}") from error
        try:
            self._lock()
            old = path.read_bytes()
            if not resume and old.count(b"\n") > 1:
                self._set_aside(old)
            self._begin(old if resume else b"")
        except BaseException:
            os.close(self._descriptor)
            raise

    def add(self, batch: AnsweredBatch) -> None:
        """Write a batch; what a killed run leaves of it is the whole line or one that the next run drops."""
        answers = [dataclasses.asdict(answer) for answer in batch.answers]
        self._write({"seconds": batch.seconds, "answers": answers})
        self.batches.append(batch)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another run writes {self.path}; wait for its end or give --output_dir") from None

    def _set_aside(self, old: bytes) -> None:
        """Answers that took hours are not lost to a forgotten --resume."""
        place = self.path.with_name(f"{self.path.name}.old")
        with written_whole(place) as temporary:
            temporary.write_bytes(old)
        logger.info("the answers of an earlier run are now in %s", place)

    def _begin(self, old: bytes) -> None:
        *lines, torn = old.split(b"\n")
        os.truncate(self._descriptor, len(old) - len(torn))
        if not lines:
            self._write(self._header)
            return
        try:
            header, *batches = [json.loads(line) for line in lines]
            self._check(header["fingerprint"], header["remarks"])
            self.batches = [
                AnsweredBatch([ScoredAnswer(**answer) for answer in batch["answers"]], batch["seconds"])
                for batch in batches
            ]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{self.path} is damaged ({error}); run without --resume to start anew") from None

    def _check(self, fingerprint: Mapping[str, Any], remarks: Mapping[str, Any]) -> None:
        """Compared as JSON gives them back, where a tuple is a list."""
        own = json.loads(json.dumps(self._header))
        if differences := _differences(fingerprint, own["fingerprint"]):
            raise ConfigError(
                f"--resume: {self.path} is of a run with other settings: {'; '.join(differences)};"
                " give its settings again, or run without --resume to start anew"
            )
        for difference in _differences(remarks, own["remarks"]):
            logger.warning("the run that is continued differs: %s", difference)

    def _write(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise AtbError(
                f"{self.path} cannot be written: {error.strerror}; free room, then run with --resume"
            ) from error


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Sequence[str]:
    """As "batch_size 1, now 4", nested names as weights.config.json."""
    found: list[str] = []
    for name in {**old, **new}:
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            found += [f"{name}.{inner}" for inner in _differences(before, now)]
        elif before != now:
            found.append(f"{name} {before!r}, now {now!r}")
    return found
