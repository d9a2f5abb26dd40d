"""What run_pa is asked: the requests, chosen from the input flags in MindIE's order, and how long they may be."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atb_models.engine.arguments import Conversation
from atb_models.errors import ConfigError
from atb_models.files import read_text
from atb_models.json_file import json_lines

logger = logging.getLogger(__name__)

DEFAULT_MAX_INPUT_LENGTH = 1024


@dataclass(frozen=True)
class Inputs:
    """The requests, all of one form: token ids, texts, or conversations when `is_chat`."""

    items: list[Any]
    is_chat: bool = False


@dataclass(frozen=True)
class InputOptions:
    """The flags of these names."""

    input_texts: list[str]
    input_ids: list[list[int]] | None
    input_file: str | None
    is_chat_model: bool
    system_prompt: str | None
    max_batch_size: int


def read_inputs(options: InputOptions) -> Inputs:
    """Requests by priority: --input_file (with --is_chat_model), --input_ids, --input_texts.

    A text that names an existing file is replaced by its content; with --is_chat_model a text becomes a user's turn,
    after the system's if there is a --system_prompt.
    A single request is copied --max_batch_size times. Raises ConfigError for a file that cannot be used, a text that is
    not UTF-8 and one that is the folder of a checkpoint.
    """
    if options.input_file:
        inputs = Inputs(_conversations(Path(options.input_file)), is_chat=True)
    elif options.input_ids:
        if options.is_chat_model:
            logger.warning("--is_chat_model has no effect on --input_ids: token ids are used as they are")
        inputs = Inputs(options.input_ids)
    else:
        texts = [_text_or_content(text) for text in options.input_texts]
        if options.is_chat_model:
            inputs = Inputs([_chat(text, options.system_prompt) for text in texts], is_chat=True)
        else:
            inputs = Inputs(texts)
    if len(inputs.items) == 1:
        return Inputs(inputs.items * options.max_batch_size, inputs.is_chat)
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
    return read_text(path, f"--input_texts {path}")


def _utf8(text: str, flag: str) -> str:
    """`text`, unless bytes of the command line that are not UTF-8 stand in it, as surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{flag} is not UTF-8 text: {text!r}, character {error.start + 1}") from None
    return text


def _conversations(path: Path) -> list[Conversation]:
    place = f"--input_file {path}"
    lines = list(json_lines(read_text(path, place), place))
    if not lines:
        raise ConfigError(f"{place} holds no conversation; it needs a JSON list of role and content a line")
    return [_conversation(turns, f"{place}, line {number}") for number, turns in lines]


def _conversation(turns: Any, place: str) -> Conversation:
    if not isinstance(turns, list) or not turns or not all(map(_is_turn, turns)):
        raise ConfigError(f'{place} is no conversation; it must be like [{{"role": "user", "content": "Hello"}}]')
    return turns


def _is_turn(turn: object) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))


@dataclass(frozen=True)
class Lengths:
    """The flags of these names. Lengths are in tokens; None: the flag was not given."""

    max_input_length: int | None
    max_output_length: int
    max_prefill_batch_size: int | None
    input_ids: list[list[int]] | None
    input_file: str | None  # with one, input_ids are not run


def check_lengths(lengths: Lengths, limit: int, source: str) -> None:
    """Refuse prompt and answer lengths beyond `limit` positions, which `source` names.

    A --max_input_length that was not given is the smaller of 1024 and what the limit leaves. The lengths of token ids
    are known here; a text's are seen when it is run.
    """
    answer = lengths.max_output_length
    wanted = answer + (lengths.max_input_length or 1)
    if wanted > limit:
        prompt = f"--max_input_length {lengths.max_input_length}" if lengths.max_input_length else "a prompt of 1 token"
        raise ConfigError(
            f"{prompt} and --max_output_length {answer} need {wanted} positions,"
            f" {source} allows {limit}; shorten one of them"
        )
    for number, ids in enumerate([] if lengths.input_file else lengths.input_ids or []):
        if len(ids) + answer > limit:
            raise ConfigError(
                f"request {number}: {len(ids)} --input_ids and --max_output_length {answer} need"
                f" {len(ids) + answer} positions, {source} allows {limit}; shorten one of them"
            )


def input_length(lengths: Lengths, limit: int) -> int:
    """--max_input_length, or its default: 1024 tokens, less where the positions end."""
    return lengths.max_input_length or min(DEFAULT_MAX_INPUT_LENGTH, limit - lengths.max_output_length)
