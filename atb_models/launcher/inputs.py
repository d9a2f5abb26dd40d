"""What run_pa is asked: the requests, chosen from the input flags in MindIE's order."""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atb_models.errors import ConfigError

if TYPE_CHECKING:
    from atb_models.engine.llm import Conversation  # it takes torch, which the launcher's checks do without

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """The requests, all of one form: token ids, texts, or conversations when `is_chat`."""

    items: list[Any]
    is_chat: bool = False


def read_inputs(args: argparse.Namespace) -> Inputs:
    """Requests by priority: --input_file (with --is_chat_model), --input_ids, --input_texts.

    A text that names an existing file is replaced by its content; with --is_chat_model a text becomes a user's turn,
    after the system's if there is a --system_prompt.
    A single request is copied --max_batch_size times. Raises ConfigError for a file that cannot be used, a text that is
    not UTF-8 and one that is the folder of a checkpoint.
    """
    if args.input_file:
        inputs = Inputs(_conversations(Path(args.input_file)), is_chat=True)
    elif args.input_ids:
        if args.is_chat_model:
            logger.warning("--is_chat_model has no effect on --input_ids: token ids are used as they are")
        inputs = Inputs(args.input_ids)
    else:
        texts = [_text_or_content(text) for text in args.input_texts]
        inputs = (
            Inputs([_chat(text, args.system_prompt) for text in texts], True) if args.is_chat_model else Inputs(texts)
        )
    if len(inputs.items) == 1:
        return Inputs(inputs.items * args.max_batch_size, inputs.is_chat)
    return inputs


def _chat(text: str, system_prompt: str | None) -> Conversation:
    system = [] if system_prompt is None else [{"role": "system", "content": _utf8(system_prompt, "--system_prompt")}]
    return [*system, {"role": "user", "content": text}]


def _text_or_content(text: str) -> str:
    try:
        path = Path(text)
        is_file, is_checkpoint = path.is_file(), bool(text) and (path / "config.json").is_file()
    except (OSError, ValueError):  # too long for a name, or a NUL in it: a text
        is_file = is_checkpoint = False
    if is_checkpoint:
        raise ConfigError(f"{text} is a checkpoint folder; put it before --input_texts, or use --model_path")
    if not is_file:
        return _utf8(text, "--input_texts")
    logger.info("input text is the content of %s", path)
    return _read(path, "--input_texts")


def _utf8(text: str, flag: str) -> str:
    """`text`, unless bytes of the command line that are not UTF-8 stand in it, as surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{flag} is not UTF-8 text: {text!r}, character {error.start + 1}") from None
    return text


def _conversations(path: Path) -> list[Conversation]:
    lines = [(number, line) for number, line in enumerate(_read(path, "--input_file").splitlines(), 1) if line.strip()]
    if not lines:
        raise ConfigError(f"--input_file {path} holds no conversation; it needs a JSON list of role and content a line")
    return [_conversation(line, f"--input_file {path}, line {number}") for number, line in lines]


def _conversation(line: str, place: str) -> Conversation:
    try:
        turns = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{place} is no JSON: {error}") from None
    if not isinstance(turns, list) or not turns or not all(map(_is_turn, turns)):
        raise ConfigError(f'{place} is no conversation; it must be like [{{"role": "user", "content": "Hello"}}]')
    return turns


def _is_turn(turn: object) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))


def _read(path: Path, flag: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{flag} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag} {path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
