"""A process with a tokenizer of its own, started when it is first needed; see worker.py for its side."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atb_models.errors import RequestError
from atb_models.ranks.lifetime import child_environment
from atb_models.server.channel import packed, read_message
from atb_models.server.errors import Broken
from atb_models.server.tokenizing.tasks import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizerSource:
    """What `load_tokenizer` takes."""

    folder: Path
    chat_template: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class DoneText:
    """From the worker: a task's result."""

    result: Any


@dataclass(frozen=True)
class RefusedText:
    """From the worker: the request cannot be served."""

    message: str


@dataclass(frozen=True)
class FailedText:
    """From the worker: a fault; its trace is for the log."""

    trace: str


class TokenizerProcess:
    """Runs one task at a time, in the order in which they come. The process ends by itself when it is not needed."""

    def __init__(self, source: TokenizerSource) -> None:
        self._source = source
        self._turn = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def run(self, task: Task, *args: Any) -> Any:
        """The result of `task`; when this is cancelled the process ends. Raises RequestError or Broken."""
        async with self._turn:
            is_new = self._process is None
            try:
                answer = await self._ask(task, args)
                if answer is None and not is_new:  # it has ended by itself meanwhile
                    self.end()
                    answer = await self._ask(task, args)
            except BaseException:
                self.end()
                raise
            if isinstance(answer, DoneText):
                return answer.result
            if isinstance(answer, RefusedText):
                raise RequestError(answer.message)
            self.end()
            logger.error("a text could not be tokenized: %s", answer.trace if answer else "the process ended")
            raise Broken

    def end(self) -> None:
        """End the process, if there is one, and whatever it does. May be repeated."""
        process, writer = self._process, self._writer
        self._process = self._reader = self._writer = None
        if writer is not None:
            writer.close()
        if process is not None:
            process.kill()
            # It may take a while to give its memory back, and is a zombie until somebody has waited for it.
            asyncio.get_running_loop().run_in_executor(None, process.wait)

    async def _ask(self, task: Task, args: tuple[Any, ...]) -> Any:
        if self._process is None:
            await self._start()
        assert self._writer is not None and self._reader is not None
        self._writer.write(packed((task, args)))
        try:
            await self._writer.drain()
        except ConnectionError:
            return None
        return await read_message(self._reader)

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.worker", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is for the front to handle
                env=child_environment(),
            )
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        self._writer.write(packed(self._source))
