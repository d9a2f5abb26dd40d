"""The front's side of the engine process: starts it, sends requests and gives each request its pieces."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable

from atb_models.engine.config import EngineConfig
from atb_models.ranks.lifetime import child_environment
from atb_models.sampling_params import SamplingParams
from atb_models.server.channel import packed, read_message
from atb_models.server.errors import EngineGone, ModelFailed, Unservable, without_paths
from atb_models.server.messages import (
    Abort,
    Accepted,
    Add,
    Ask,
    Command,
    Facts,
    Failed,
    Load,
    Loaded,
    Loading,
    Piece,
    Refused,
    Report,
    Stepped,
    Stepping,
)
from atb_models.server.pace import Pace

EXIT_TIMEOUT_S = 10.0  # for the engine to end after it was told to; then it is killed


class Ticket:
    """A request that was sent to the engine. `news` is set whenever one of the fields below changes.

    pieces: received and not yet taken. error: why it will not be answered. ended: no more pieces will come.
    """

    def __init__(self, request_id: int, news: asyncio.Event) -> None:
        self.request_id, self._news = request_id, news
        self.accepted = self.ended = False
        self.pieces: list[Piece] = []
        self.error: Exception | None = None

    def accept(self) -> None:
        self.accepted = True
        self._news.set()

    def push(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.ended = piece.finish_reason is not None
        self._news.set()

    def fail(self, error: Exception) -> None:
        self.error, self.ended = error, True
        self._news.set()


class EngineClient:
    """One engine process; `run` returns when it has ended.

    facts: None until the model is loaded. detail: progress of the start. load: the engine's state after its last step.
    failure: why it has ended, for clients; `cause`: the same for the log; `status`: the program's exit status then.
    on_step: called with each new load.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._numbers = itertools.count()
        self._tickets: dict[int, Ticket] = {}
        self._asking = asyncio.Event()  # set when the engine has answered
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.facts: Facts | None = None
        self.detail = "starting"
        self.load = Load()
        self.pace = Pace()
        self.failure: str | None = None
        self.cause = ""
        self.status = 0
        self.on_step: Callable[[Load], None] = lambda load: None

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Start the process and read its messages until it has ended; `failure` and `status` then say how."""
        reader = await self._start()
        while (report := await read_message(reader)) is not None:
            self._hear(report)
            if isinstance(report, Loaded):
                on_ready()
        status = await asyncio.to_thread(self._reap)
        self._fail(self.cause or f"the engine process {_ended(status)}", self.status or status)

    def submit(
        self, prompt_token_ids: list[int], params: SamplingParams, *, stream: bool, news: asyncio.Event
    ) -> Ticket:
        """Send a request. Raises EngineGone."""
        if self.failure is not None:
            raise EngineGone(self.failure)
        ticket = Ticket(next(self._numbers), news)
        self._tickets[ticket.request_id] = ticket
        self._send(Add(ticket.request_id, prompt_token_ids, params, stream))
        return ticket

    def give_up(self, ticket: Ticket) -> None:
        """Give a request up: the engine frees its blocks before its next step. May be repeated."""
        if self._tickets.pop(ticket.request_id, None) is not None and self.failure is None:
            self._send(Abort(ticket.request_id))

    async def answers(self, wait_s: float) -> bool:
        """Whether the engine answers within `timeout_s` seconds. It answers between two steps."""
        if self.facts is None or self.failure is not None:
            return False
        self._asking.clear()
        self._send(Ask())
        try:
            await asyncio.wait_for(self._asking.wait(), wait_s)
        except asyncio.TimeoutError:
            return False
        return self.failure is None

    def stop(self, *, kill: bool = False) -> None:
        """Let the process end; `run` returns once it has. While it loads it reads no messages, so it is killed then."""
        if self._writer is not None:
            self._writer.close()
        if (kill or self.facts is None) and self._process is not None:
            self._process.kill()
        self.failure = self.failure or "the service has ended"
        self._fail("", 0)

    @property
    def open_requests(self) -> int:
        return len(self._tickets)

    async def _start(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.engine_process", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # the front alone handles Ctrl-C in the terminal
                env=child_environment(),
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._writer.write(packed(self._config))
        return reader

    def _send(self, command: Command) -> None:
        assert self._writer is not None, "requests are submitted to an engine that is ready"
        self._writer.write(packed(command))

    def _hear(self, report: Report) -> None:
        if isinstance(report, Stepped):
            self.load = report.load
            self.pace.stepped(report.load)
            self._asking.set()
            for piece in report.pieces:
                self._give(piece)
            self.on_step(report.load)
        elif isinstance(report, Stepping):
            self.pace.began(report.prompt_tokens)
            self._asking.set()
        elif isinstance(report, Accepted):
            if ticket := self._tickets.get(report.request_id):
                ticket.accept()
        elif isinstance(report, Refused):
            if ticket := self._tickets.pop(report.request_id, None):
                ticket.fail(Unservable(without_paths(report.message)))
        elif isinstance(report, Loading):
            self.detail = report.detail if _is_public(report.detail) else self.detail
        elif isinstance(report, Loaded):
            self.facts = report.facts
        elif isinstance(report, Failed):
            self._fail(report.message, report.status)

    def _give(self, piece: Piece) -> None:
        ticket = self._tickets.get(piece.request_id)
        if ticket is None:  # given up during the step
            return
        if piece.finish_reason is not None:
            del self._tickets[piece.request_id]
        if piece.error is not None:
            ticket.fail(ModelFailed(without_paths(piece.error)))
        else:
            ticket.push(piece)

    def _fail(self, cause: str, status: int) -> None:
        """Set the failure, unless there is one: the first is kept."""
        if self.failure is None:
            first = cause.partition("\n")[0]
            self.cause, self.status = cause, status
            self.failure = f"the engine has ended: {first if _is_public(first) else 'the log of the service says why'}"
        self._asking.set()
        for ticket in self._tickets.values():
            ticket.fail(EngineGone(self.failure))
        self._tickets.clear()

    def _reap(self) -> int:
        """The process's exit status; 128 + n if signal n ended it."""
        assert self._process is not None
        try:
            status = self._process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        return status if status >= 0 else 128 - status


def _ended(status: int) -> str:
    return f"ended with status {status}" if status <= 128 else f"was killed by signal {status - 128}"


def _is_public(text: str) -> bool:
    """Whether clients may read a message: it has no paths and is no internal error."""
    return "/" not in text and not text.startswith("internal error")
