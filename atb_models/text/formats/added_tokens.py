"""Tokens that stand beside a vocabulary: they are found in a text before the vocabulary divides the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from atb_models.errors import CheckpointError
from atb_models.json_file import is_there, read_json
from atb_models.text.tokenizer_settings import FLAGS, SPECIAL, check_id, check_token, more_special, text_of
from atb_models.wording import shown

FILE = "added_tokens.json"
REST = ""  # what the finder calls text between added tokens; no token is empty


class AddedTokens:
    """Finds tokens in a text by the rules of the tokenizers library: the longest one, and blanks as their flags say."""

    def __init__(self, tokens: Mapping[int, Mapping[str, Any]]) -> None:
        """tokens: by id, each with content and flags; of two with the same content the later one counts."""
        from tokenizers import AddedToken, models
        from tokenizers import Tokenizer as JsonTokenizer

        self.tokens = dict(tokens)
        self._finder = JsonTokenizer(models.WordLevel({REST: 0}, unk_token=REST))
        self._finder.add_special_tokens([AddedToken(token["content"], **_flags(token)) for token in tokens.values()])
        self._ids = {self._finder.token_to_id(token["content"]): index for index, token in tokens.items()}

    def split(self, text: str) -> Iterator[int | str]:
        """The parts of a text in order: ids of added tokens, and the text between them."""
        encoding = self._finder.encode(text, add_special_tokens=False)
        for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            yield self._ids[number] if number else text[start:end]


def read_added_tokens(folder: Path, settings: Mapping[str, Any], ids: Mapping[str, int]) -> dict[int, dict[str, Any]]:
    """The added tokens of a checkpoint by id, each with content, flags and whether it is special.

    They are those of tokenizer_config.json or else of added_tokens.json, and the special tokens that the settings name;
    such a one that neither these nor the vocabulary has gets the next id. ids: of the vocabulary, by piece.
    Raises CheckpointError for an id that is none, or of two tokens.
    """
    named = [settings[name] for name in SPECIAL if settings.get(name) is not None] + more_special(settings)
    special = {text_of(token): token if isinstance(token, dict) else {"content": token} for token in named}
    tokens = _listed(folder, settings, special.keys())
    known = {token["content"] for token in tokens.values()}
    for text, token in special.items():
        if text in known:
            continue
        index = ids.get(text)
        if index is None:
            index = max((len(ids) - 1, *tokens)) + 1
        if index in tokens:
            raise CheckpointError(f"{folder}: {text!r} and {tokens[index]['content']!r} both have the id {index}")
        tokens[index] = {**token, "special": True}
    return tokens


def _listed(folder: Path, settings: Mapping[str, Any], special: Any) -> dict[int, dict[str, Any]]:
    listed = settings.get("added_tokens_decoder")
    if listed is not None:
        tokens = {int(key): dict(token) for key, token in listed.items()}
    elif is_there(folder / FILE):
        path, texts = folder / FILE, read_json(folder / FILE)
        tokens = {}
        for text, index in texts.items():
            check_token(path, f"the token {shown(index)}", text)
            tokens[check_id(path, f"the id of {shown(text)}", index)] = {"content": text}
        if len(tokens) < len(texts):
            raise CheckpointError(f"{path} gives two tokens the same id")
    else:
        return {}
    return {
        index: {**token, "special": bool(token.get("special")) or token["content"] in special}
        for index, token in tokens.items()
    }


def _flags(token: Mapping[str, Any]) -> dict[str, Any]:
    """Always as special ones: their text is sought in the raw text, never in a normalized one."""
    return {name: token[name] for name in FLAGS if name in token} | {"normalized": False, "special": True}
