"""The process of a `TokenizerProcess`: `python -m atb_models.server.tokenizing.worker FD PID`.

FD: the channel to the front, whose pid is PID. The first message says which tokenizer, each further one is a task.
"""

from __future__ import annotations

import os
import signal
import sys

from atb_models.ranks.lifetime import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which a supervisor may send to all; the front decides

import logging
import socket
import traceback
from typing import Any

from atb_models.errors import RequestError
from atb_models.server.channel import Channel
from atb_models.server.tokenizing.process import DoneText, FailedText, RefusedText, TokenizerSource
from atb_models.text.tokenizer import load_tokenizer

IDLE_S = 60.0  # after which it ends and gives its memory back


def main(fd: int) -> None:
    """Do tasks until the front closes the channel or has none for a while."""
    logging.getLogger("atb_models").addHandler(logging.NullHandler())  # the front has said it all
    end = socket.socket(fileno=fd)
    end.set_inheritable(False)
    channel = Channel(end)
    source, *tasks = channel.take(None)
    tokenizer: Any = None
    while not channel.closed:
        for task, args in tasks:
            try:
                tokenizer = tokenizer or _load(source)
                channel.send(DoneText(task(tokenizer, *args)))
            except RequestError as error:
                channel.send(RefusedText(str(error)))
            except BaseException:  # a panic of the tokenizers library is no Exception
                channel.send(FailedText(traceback.format_exc().rstrip()))
        if channel.is_quiet(IDLE_S):
            return
        tasks = channel.take(None)


def _load(source: TokenizerSource) -> Any:
    return load_tokenizer(source.folder, source.chat_template, source.trust_remote_code)


if __name__ == "__main__":
    main(int(sys.argv[1]))
    os._exit(0)  # nothing is left to do, and no thread of a library can hold it up
