"""Where a text is tokenized: at once, in a thread, or in a process, by its length."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from atb_models.server.tokenizing.process import TokenizerProcess, TokenizerSource
from atb_models.server.tokenizing.tasks import Task
from atb_models.text.tokenizer import Tokenizer
from atb_models.text.tokenizer_added import LONG_TEXT

THREAD_TEXT = 1 << 16  # characters at most in a thread: about 0.1 s, since a thread cannot be ended
THREADS = 2
PROCESS_TEXT = 1 << 19  # characters at most in the first process; longer texts wait for each other in the second


class Lanes:
    """A text waits only for texts of about its length.

    A task that waits is dropped when it is cancelled. So is one that runs in a process, which is ended then: it may
    take seconds and gigabytes.
    """

    def __init__(self, tokenizer: Tokenizer, source: TokenizerSource) -> None:
        self._tokenizer = tokenizer
        self._threads = ThreadPoolExecutor(THREADS, "tokenize")
        self._processes = TokenizerProcess(source), TokenizerProcess(source)

    async def run(self, size: int, task: Task, *args: Any) -> Any:
        """The result of `task`. size: characters, about. Raises what it raises."""
        if size <= LONG_TEXT:
            return task(self._tokenizer, *args)
        if size <= THREAD_TEXT:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, task, self._tokenizer, *args)
        return await self._processes[size > PROCESS_TEXT].run(task, *args)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.end()
        self._threads.shutdown(wait=False, cancel_futures=True)
