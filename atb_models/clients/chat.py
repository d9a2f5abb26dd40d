"""`atb-models chat`: a conversation in the terminal, with a model that is loaded here or with a server."""

from __future__ import annotations

import argparse
import asyncio
import codecs
import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from atb_models import env, log
from atb_models.clients.flags import (
    MODEL,
    SERVER,
    check_apart,
    model_of,
    server_flags,
    server_model_flag,
    server_of,
)
from atb_models.clients.local import load
from atb_models.clients.talkers import ChatTurn, LocalTalker, Message, RemoteTalker, Talker
from atb_models.command.engine_options import engine_config
from atb_models.command.exit_status import print_error
from atb_models.command.model_flags import cache_flags, length_flag, model_flags
from atb_models.command.parser import Parser
from atb_models.command.sampling import client_sampling, client_sampling_flags
from atb_models.errors import AtbError, ConfigError

PROMPT = "> "
HELP = """\
/reset          forget the conversation
/system TEXT    what the model should know before the first turn; starts the conversation anew
/system         show it
/help           this
/exit           end, as Ctrl-D does
Ctrl-C stops an answer. A line that begins with a blank is never a command."""


def main(words: list[str]) -> int:
    """Chat until the input ends. The exit status."""
    parser = build_parser()
    args = parser.parse(words)
    check_apart(args, parser)
    if not args.load_tokenizer:
        parser.error("--load_tokenizer False leaves no way to read text")
    if isinstance(sys.stdin, io.TextIOWrapper):  # a pipe may hold any bytes, and a file begin with a mark
        is_utf8 = codecs.lookup(sys.stdin.encoding).name == "utf-8"
        sys.stdin.reconfigure(encoding="utf-8-sig" if is_utf8 else None, errors="replace")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale may lack Chinese
        sys.stdout.reconfigure(errors="backslashreplace")
    client_sampling(args)
    is_terminal = sys.stdin.isatty()
    with _talker(args) as talker:
        Chat(talker, args.system, is_terminal=is_terminal).run()
    return 0


def build_parser() -> Parser:
    parser = Parser(
        prog="atb-models chat",
        description="Talk with a model: turns are lines of stdin, answers go to stdout.",
        allow_abbrev=False,
    )
    server = parser.add_argument_group(SERVER)
    server_flags(server, default=None)
    server_model_flag(server)
    model = parser.add_argument_group(MODEL)
    model_flags(model)
    length_flag(model)
    cache_flags(model)
    talk = parser.add_argument_group("chat")
    talk.add_argument("--system", metavar="TEXT", help="what the model should know before the first turn")
    client_sampling_flags(talk)
    return parser


@contextmanager
def _talker(args: argparse.Namespace) -> Iterator[Talker]:
    if args.url is not None:
        server = server_of(args)
        yield RemoteTalker(server, args.model or asyncio.run(model_of(server)), client_sampling(args))
        return
    log.setup()
    if not env.is_set("MINDIE_LOG_LEVEL"):  # unless the user asks for more, a chat shows warnings only
        logging.getLogger("atb_models").setLevel(logging.WARNING)
    with load(engine_config(args, max_batch_size=1, max_seq_len=args.max_seq_len)) as llm:
        yield LocalTalker(llm, client_sampling(args))


class Chat:
    """The conversation and its commands. is_terminal: a person types, sees prompts and may try again after an error."""

    def __init__(self, talker: Talker, system: str | None, *, is_terminal: bool) -> None:
        self._talker, self._system, self._is_terminal = talker, system, is_terminal
        self._turns: list[Message] = []

    def run(self) -> None:
        """Chat until the input's end or /exit. Raises AtbError if the input is no terminal."""
        if self._is_terminal:
            import readline  # noqa: F401 (arrow keys and editing for `input`)

            self._note(f"{self._talker.name} answers; /help lists the commands, Ctrl-D ends")
        while (line := self._line()) is not None:
            if line.startswith("/"):
                if line.split() == ["/exit"]:
                    break
                self._command(*line.partition(" ")[::2])
            elif line.strip():
                self._turn(line.strip())

    def _line(self) -> str | None:
        """The next line; None at the end of the input."""
        while True:
            try:
                return input(PROMPT if self._is_terminal else "").removesuffix("\r")  # a file may be Windows'
            except EOFError:
                if self._is_terminal:
                    print()
                return None
            except KeyboardInterrupt:
                if not self._is_terminal:
                    raise
                print()
                self._note("Ctrl-D or /exit ends")

    def _command(self, name: str, rest: str) -> None:
        if name == "/reset":
            self._turns.clear()
        elif name == "/system" and rest.strip():
            self._system = rest.strip()
            self._turns.clear()
        elif name == "/system":
            self._note(self._system or "there is no system text")
        elif name == "/help":
            self._note(HELP)
        else:
            self._failed(ConfigError(f"{name} is no command; /help lists them"))

    def _turn(self, text: str) -> None:
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        asked = [*self._turns, {"role": "user", "content": text}]
        shown = _Shown()
        try:
            reply = self._talker.answer([*system, *asked], shown.add)
        except AtbError as error:
            shown.end()
            self._failed(error)
            return
        shown.end()
        if reply.text:
            self._turns = [*asked, {"role": "assistant", "content": reply.text}]
        self._told(reply)

    def _told(self, reply: ChatTurn) -> None:
        if reply.is_stopped and not self._is_terminal:
            raise KeyboardInterrupt
        if summary := reply.summary():
            self._note(f"[{summary}]")

    def _failed(self, error: AtbError) -> None:
        if not self._is_terminal:
            raise error
        print_error(str(error))

    def _note(self, text: str) -> None:
        """A note for the user; not part of the answers."""
        if self._is_terminal:
            print(text, file=sys.stderr, flush=True)


class _Shown:
    """Prints an answer without the blanks at its beginning and with one line end."""

    def __init__(self) -> None:
        self._last = ""

    def add(self, text: str) -> None:
        text = text if self._last else text.lstrip()
        if text:
            self._last = text[-1]
            sys.stdout.write(text)
            sys.stdout.flush()

    def end(self) -> None:
        if self._last != "\n":
            print(flush=True)
