"""The engine process: `python -m atb_models.server.engine_process FD PID`.

FD: the socket to the front. PID: the front's process. The first message is the EngineConfig. Then, again and again, the
engine reads what the front has sent, runs a step for all open requests and sends what they gained. It waits only when
it has no request.
"""

from __future__ import annotations

import signal
import sys

from atb_models.ranks.lifetime import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))  # before the slow imports
    # A supervisor may send SIGTERM to all processes. The front decides when this one ends, and its ranks inherit this.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

import logging
import os
import socket
import traceback
from dataclasses import dataclass, fields
from time import perf_counter
from typing import TYPE_CHECKING

from atb_models.errors import AtbError, CapacityError, RequestError
from atb_models.machine.imports import import_torch_for_good
from atb_models.outputs import RequestOutput
from atb_models.server.channel import Channel
from atb_models.server.messages import (
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
    Stepped,
    Stepping,
)

if TYPE_CHECKING:
    from torch import Tensor

    from atb_models import LLM
    from atb_models.engine.launched import Runner
    from atb_models.engine.scheduler import Row

logger = logging.getLogger("atb_models.server.engine_process")  # __name__ is __main__

LOAD = [field.name for field in fields(Load)]
LOOK_EVERY_S = 1.0  # between two checks of an idle engine that its ranks are alive
LOG_EVERY_S = 10.0  # between two lines of the log about the weights


def main(fd: int) -> int:
    """Load the model and serve until the front closes the channel. The exit status."""
    from atb_models import log

    end = socket.socket(fileno=fd)
    end.set_inheritable(False)
    channel = Channel(end)
    log.setup()
    teller = _Teller(channel)
    logging.getLogger("atb_models").addHandler(teller)
    try:
        (config,) = channel.take(None)
        channel.send(Loading("starting"))
        with import_torch_for_good():
            from atb_models import LLM
            from atb_models.command.engine_options import take_device
            from atb_models.models.weights.loader import listeners

        listeners.append(teller.loaded)
        take_device(config)
        with LLM(config) as llm:
            logging.getLogger("atb_models").removeHandler(teller)
            loop = EngineLoop(llm, channel)
            loop.tell([])
            channel.send(Loaded(_facts(llm)))
            loop.run()
        return 0
    except BaseException as error:
        status = error.exit_status if isinstance(error, AtbError) else 1
        known = isinstance(error, (AtbError, MemoryError))
        channel.send(Failed(str(error) if known else "internal error\n" + traceback.format_exc().rstrip(), status))
        return status


class _Teller(logging.Handler):
    """During the start: sends the engine's log lines and the progress of the weights to the front, for /health."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(logging.INFO)
        self._channel = channel
        self._percent, self._logged_s = -1, perf_counter()

    def loaded(self, done: int, total: int) -> None:
        """Called with the bytes of weights that are loaded, and of all weights."""
        percent = 100 * done // max(1, total)
        if percent == self._percent:
            return
        self._percent = percent
        self._channel.send(Loading(f"weights {percent} % of {total / 1e9:.1f} GB"))
        if perf_counter() - self._logged_s >= LOG_EVERY_S:
            self._logged_s = perf_counter()
            logger.info("weights: %d %% of %.1f GB are loaded", percent, total / 1e9)

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send(Loading(record.getMessage()))


def _facts(llm: LLM) -> Facts:
    scheduler = llm.engine.scheduler
    blocks = scheduler.block_manager
    return Facts(
        dtype=llm._runner.model_config.run_dtype(llm.config.dtype),
        quantization=llm.quantization,
        device=llm.device.type,
        size=llm.size,
        vocab_size=llm.engine.vocab_size or 0,
        max_seq_len=min(scheduler.limits.max_seq_len, blocks.num_blocks * blocks.block_size),
        max_batch_size=scheduler.limits.max_batch_size,
        block_size=blocks.block_size,
        total_blocks=blocks.num_blocks,
    )


class EngineLoop:
    """Runs steps for all open requests. `run` returns when the front has ended."""

    def __init__(self, llm: LLM, channel: Channel) -> None:
        self._llm, self._engine, self._channel = llm, llm.engine, channel
        self._engine.runner = _Announced(self._engine.runner, channel)
        self._live: dict[int, _Live] = {}
        self._checked = False

    def run(self) -> None:
        while not self._channel.closed:
            idle = not self._engine.has_work()
            for command in self._channel.take(LOOK_EVERY_S if idle else 0.0):
                self._obey(command)
            if self._engine.has_work():
                self.tell(self._engine.step())
            elif idle:
                self._rest()

    def tell(self, outputs: list[RequestOutput]) -> None:
        """Send the front the results of a step and the engine's state."""
        pieces = []
        for output in outputs:
            pieces.append(self._live[output.index].piece(output))
            if output.finish_reason is not None:
                del self._live[output.index]
        self._channel.send(Stepped(pieces, self._load()))

    def _rest(self) -> None:
        """While idle: check that the ranks are alive and, once after work, that no block is lost."""
        self._llm.check()
        if not self._checked:
            self._engine.scheduler.check()
            assert not self._live, f"requests {list(self._live)} are lost"
            self._checked = True

    def _obey(self, command: Command) -> None:
        if isinstance(command, Add):
            self._add(command)
        elif isinstance(command, Ask):
            self._llm.check()
            self.tell([])
        elif live := self._live.get(command.request_id):
            output = self._engine.abort(live.seq_id)
            assert output is not None, "what has ended is not live"
            self.tell([output])

    def _add(self, add: Add) -> None:
        number = add.request_id
        try:
            sequence = self._engine.add_request(add.prompt_token_ids, add.params, index=number, stream=add.stream)
        except (RequestError, CapacityError) as error:
            self._channel.send(Refused(number, str(error)))
            return
        self._live[number] = _Live(sequence.seq_id, add.stream)
        self._checked = False
        self._channel.send(Accepted(number))

    def _load(self) -> Load:
        counts = self._engine.counts()
        return Load(**{name: counts[name] for name in LOAD})


class _Announced:
    """A runner that tells the front of steps that may take long, before they do."""

    def __init__(self, runner: Runner, channel: Channel) -> None:
        self._runner, self._channel = runner, channel
        self.gives_top_logits = runner.gives_top_logits

    def run(self, rows: list[Row], top_logits: int = 0) -> Tensor:
        prompt_tokens = sum(row.num_tokens for row in rows if row.is_prefill)
        if prompt_tokens:
            self._channel.send(Stepping(prompt_tokens))
        return self._runner.run(rows, top_logits)


@dataclass
class _Live:
    """An open request: its number in the engine, and how many of its tokens the front has received."""

    seq_id: int
    stream: bool
    told: int = 0

    def piece(self, output: RequestOutput) -> Piece:
        start, self.told = self.told, len(output.token_ids)
        return Piece(
            request_id=output.index,
            text=output.delta if self.stream else output.text,
            token_ids=output.token_ids[start:],
            finish_reason=output.finish_reason,
            logprobs=None if output.logprobs is None else output.logprobs[start:],
            prompt_logprobs=output.prompt_logprobs if start == 0 else None,
            metrics=output.metrics,
            error=output.error,
        )


if __name__ == "__main__":
    status = main(int(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # at once: a thread of a library could delay a normal exit
