"""Text and conversations to token ids, and back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from atb_models.errors import CheckpointError, ConfigError, RequestError
from atb_models.json_file import is_there
from atb_models.text.chat.find import find_template
from atb_models.text.chat.template import ChatTemplate, Message, NamedTemplates
from atb_models.text.formats.sentencepiece_model import FILE as SENTENCEPIECE
from atb_models.text.formats.sentencepiece_model import SentencePieceBackend
from atb_models.text.formats.tiktoken_file import RULES, TiktokenBackend, find_tiktoken
from atb_models.text.tokenizer_json import is_qwen_without_json, load_json_tokenizer
from atb_models.text.tokenizer_settings import (
    KNOWN_CLASSES,
    LLAMA_CLASSES,
    MOST_ID,
    SETTINGS,
    eos_texts,
    read_settings,
    special_tokens,
)
from atb_models.text.tokenizer_transformers import TransformersBackend, transformers_has
from atb_models.wording import shown

logger = logging.getLogger(__name__)

VOCABULARIES = ("tokenizer.json", SENTENCEPIECE, "vocab.json", "vocab.txt", "spiece.model")


class TokenizerBackend(Protocol):
    """The tokenizer itself: of a library (`JsonBackend`, `SentencePieceBackend`, `TiktokenBackend`) or a class of
    transformers in `TransformersBackend`."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def token_to_id(self, token: str) -> int | None: ...

    def id_to_token(self, token_id: int) -> str | None: ...

    @property
    def most_bytes_of_a_token(self) -> int | None: ...


class Tokenizer:
    """A checkpoint's tokenizer.

    tokens: its special tokens by name. template: None where nobody documents one. eos_texts: the end of an answer that
    each of its files names. eos_token_ids: their ids.
    """

    def __init__(
        self,
        backend: TokenizerBackend,
        tokens: dict[str, Any],
        template: ChatTemplate | NamedTemplates | None,
        eos_texts: Mapping[str, str],
    ) -> None:
        self._backend = backend
        self._template = template
        self.bos_token_id = self._id(tokens.get("bos_token"))
        self.eos_token_id = self._id(tokens.get("eos_token"))
        ids = {file: self._id(text) for file, text in eos_texts.items()}
        self.eos_token_ids = {file: (index,) for file, index in ids.items() if index is not None}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text. add_special_tokens: with bos before them, if the tokenizer adds one."""
        if not isinstance(text, str):
            raise RequestError(f"a prompt must be text, not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            where = f"half of a surrogate pair at character {error.start}"
            raise RequestError(f"the prompt is no valid Unicode text: {where}") from error
        return self._backend.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids. Incomplete characters become U+FFFD; ids without a token are left out.

        clean_up_tokenization_spaces is ignored: removing blanks before punctuation would change text that was already
        streamed.
        """
        try:
            return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        except OverflowError:  # an id that no tokenizer can have
            possible = [index for index in ids if 0 <= index <= MOST_ID]
            return self._backend.decode(possible, skip_special_tokens=skip_special_tokens)

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's entry for a token id, in its own spelling; None for an unknown id."""
        return self._backend.id_to_token(token_id)

    def least_tokens(self, num_bytes: int) -> int:
        """Tokens that a text of so many bytes has at least; 0 where the tokenizer may drop or merge any number."""
        most = self._backend.most_bytes_of_a_token
        return 0 if most is None else -(-num_bytes // most)

    def render_chat(self, conversation: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The text of a conversation, with special tokens. Raises RequestError if it or the template is malformed.

        variables: more that the template reads, such as tools, a list of JSON schemas; one that it does not is refused.
        """
        if self._template is None:
            raise RequestError("this checkpoint has no chat template; give one with --chat_template")
        return self._template.render(conversation, add_generation_prompt=add_generation_prompt, **variables)

    def apply_chat_template(
        self, conversation: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """The token ids of a conversation; the template writes bos itself, so no second one is added."""
        return self.encode(self.render_chat(conversation, add_generation_prompt, **variables), add_special_tokens=False)

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self._backend.token_to_id(token)


def load_tokenizer(
    path: Path | str, chat_template: str | None = None, trust_remote_code: bool = False
) -> Tokenizer | None:
    """The tokenizer in a checkpoint folder; None if the folder has no tokenizer files.

    chat_template: a file or the text of a Jinja template. trust_remote_code: allows a tokenizer to run its own code; no
    other code is ever run. Nothing is fetched from a network. Raises CheckpointError for a missing or damaged file,
    ConfigError for a bad template, for code that is needed and not allowed and for a package that is not installed.
    """
    folder = Path(path)
    settings = read_settings(folder)
    code = _own_code(settings)
    trusted = code if trust_remote_code else None
    ranks = find_tiktoken(folder)
    if not trusted and ranks is None and not any(is_there(folder / name) for name in VOCABULARIES):
        if not is_there(folder / SETTINGS):
            return None
        raise CheckpointError(f"{folder} has {SETTINGS}, but none of {', '.join(VOCABULARIES)}; fetch it again")
    backend: TokenizerBackend | None = None
    if trusted:
        module = trusted.split("--")[-1].rsplit(".", 1)[0]
        logger.warning("trust_remote_code: running the tokenizer's own code, %s", folder / f"{module}.py")
    else:
        backend = _without_class(folder, settings, ranks, code)
    if backend is None:
        backend = TransformersBackend(folder, trust_remote_code=trust_remote_code)
        tokens = backend.tokens
    else:
        tokens = special_tokens(settings)
    return Tokenizer(backend, tokens, find_template(folder, settings, tokens, chat_template), eos_texts(folder))


def _own_code(settings: dict[str, Any]) -> str | None:
    """The tokenizer's own class as file.Class, the fast one if there are two; None without one."""
    auto_map = settings.get("auto_map")
    classes = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
    if isinstance(classes, str):
        return classes
    return next((name for name in reversed(classes) if name), None) if isinstance(classes, list) else None


def _without_class(
    folder: Path, settings: dict[str, Any], ranks: Path | None, code: str | None
) -> TokenizerBackend | None:
    """The tokenizer where it needs no class; None where one of transformers must read it.

    Raises ConfigError if only code that is not allowed could.
    """
    name = settings.get("tokenizer_class")
    has_json = is_there(folder / "tokenizer.json")
    reader: Callable[[], TokenizerBackend]
    if is_qwen_without_json(folder, settings):
        file, reader = "vocab.json", partial(load_json_tokenizer, folder, settings)
    elif has_json and (name is None or name in KNOWN_CLASSES or not transformers_has(name)):
        file, reader = "tokenizer.json", partial(load_json_tokenizer, folder, settings)
    elif not has_json and ranks is not None and name in RULES:
        file, reader = ranks.name, partial(TiktokenBackend, ranks, settings)
    elif not has_json and name in LLAMA_CLASSES and is_there(folder / SENTENCEPIECE):
        file, reader = SENTENCEPIECE, partial(SentencePieceBackend, folder, settings)
    elif code and not transformers_has(name):
        raise ConfigError(
            f"the tokenizer in {folder} needs its own code ({code}); read it, then allow it with --trust_remote_code"
        )
    elif ranks is not None and not transformers_has(name):
        raise ConfigError(
            f"{ranks} is read for {', '.join(RULES)}, not for {shown(name)}, tokenizer_class of {SETTINGS}"
        )
    else:
        return None
    if code:
        logger.info("the tokenizer's own code (%s) is not run; %s is used", code, file)
    return reader()
