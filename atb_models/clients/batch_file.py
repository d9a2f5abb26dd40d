"""The files of `batch`: requests and answers, one a line in OpenAI's form. No line is ever half written."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn
from uuid import uuid4

from atb_models.clients.jsonl import read_objects
from atb_models.errors import AtbError, ConfigError
from atb_models.files import FILE_MODE, decode_text
from atb_models.json_file import json_object

URLS = ("/v1/chat/completions", "/v1/completions")
FIELDS = {"custom_id", "method", "url", "body"}


@dataclass(frozen=True)
class Request:
    """A request of the input. line: its line number."""

    custom_id: str
    url: str
    body: dict[str, Any]
    line: int


def read_requests(path: Path) -> list[Request]:
    """All requests. Raises ConfigError naming a line that is no request, or two lines with one custom_id."""
    requests: dict[str, Request] = {}
    for number, line in read_objects(path, "the input"):
        request = _request(line, number, f"the input {path}, line {number}")
        if other := requests.get(request.custom_id):
            raise ConfigError(f"the input {path}: lines {other.line} and {number} have the same custom_id,"
                f" {request.custom_id!r}, by which their answers could not be told apart")  # fmt: skip
        requests[request.custom_id] = request
    return list(requests.values())


def _request(line: dict[str, Any], number: int, place: str) -> Request:
    if not isinstance(line.get("custom_id"), str) or not line["custom_id"]:
        raise ConfigError(f"{place} has no custom_id, a text that identifies its answer")
    if line.get("method") != "POST":
        raise ConfigError(f"{place}: method must be 'POST', not {line.get('method')!r}")
    if line.get("url") not in URLS:
        raise ConfigError(f"{place}: url must be one of {', '.join(URLS)}, not {line.get('url')!r}")
    if not isinstance(line.get("body"), dict):
        raise ConfigError(f"{place} has no body, the JSON object that would be posted")
    if line["body"].get("stream"):
        raise ConfigError(f"{place}: stream has no meaning in a batch; leave it out")
    if more := line.keys() - FIELDS:
        raise ConfigError(f"{place}: {', '.join(sorted(more))} is not known; a line has {', '.join(sorted(FIELDS))}")
    return Request(line["custom_id"], line["url"], line["body"], number)


class Answers:
    """The output file, open for more lines; one process at a time may write it.

    path: its name. statuses: of each custom_id that it holds.
    An incomplete last line, left by a crash, is removed. Raises ConfigError for a file that is something else or that
    another batch is writing, and AtbError, which names the file, if it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.statuses: dict[str, int] = {}
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)
        except OSError as error:
            raise ConfigError(f"the output {path} cannot be written: {error.strerror}") from None
        try:
            self._size = self._take()
        except BaseException:
            os.close(self._file)
            raise

    def add(self, custom_id: str, status: int, body: Any) -> None:
        """Write an answer completely. Raises AtbError if that fails; then nothing of it is left."""
        request_id = f"batch_req_{uuid4().hex}"
        response = {"status_code": status, "request_id": request_id, "body": body}
        line = {"id": request_id, "custom_id": custom_id, "response": response, "error": None}
        data = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace") + b"\n"
        try:
            left = data
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            self._fail(error)
        self._size += len(data)
        self.statuses[custom_id] = status

    def counts(self, requests: list[Request]) -> Counter[int]:
        """Status -> how many of these requests have it."""
        return Counter(self.statuses[r.custom_id] for r in requests if r.custom_id in self.statuses)

    def close(self) -> None:
        """Close the file. Raises AtbError if what was written has not reached the disk."""
        try:
            os.fsync(self._file)
        except OSError as error:
            self._fail(error)
        finally:
            os.close(self._file)

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self) -> int:
        """Read an earlier run's answers; the size of the complete lines, to which the file is cut."""
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise ConfigError(f"the output {self.path} is no file")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"the output {self.path} is being written by another batch") from None
        size = 0
        with open(self.path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    break
                self._note(line, number)
                size += len(line)
        os.ftruncate(self._file, size)
        return size

    def _note(self, line: bytes, number: int) -> None:
        place = f"the output {self.path}, line {number}"
        try:
            answer = json_object(decode_text(line, place), place)
            self.statuses[answer["custom_id"]] = int(answer["response"]["status_code"])
        except (ValueError, TypeError, KeyError, OverflowError):
            raise ConfigError(f"{place} is no answer of a batch; name another file") from None

    def _fail(self, error: OSError) -> NoReturn:
        """Remove an incomplete line."""
        os.ftruncate(self._file, self._size)
        raise AtbError(
            f"{self.path} cannot be written: {error.strerror}; the answers in it are complete, and the same command"
            " continues after them"
        ) from None
