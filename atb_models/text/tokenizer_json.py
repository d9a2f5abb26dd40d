"""tokenizer.json and its settings, loaded with the tokenizers library alone: transformers takes seconds to import."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atb_models.errors import CheckpointError
from atb_models.json_file import checkpoint_text, is_there, json_object
from atb_models.text.formats.newer_json import is_earlier, read_tokenizer
from atb_models.text.formats.whole_words import whole_words
from atb_models.text.tokenizer_added import JsonBackend
from atb_models.text.tokenizer_bpe import QWEN_FILES, qwen_tokenizer
from atb_models.text.tokenizer_check import (
    added_ids,
    check_added_ids,
    check_content,
    explain,
    library_errors,
    try_out,
)
from atb_models.text.tokenizer_settings import (
    ADDED_BY_CLASS,
    EXTRA_SPECIAL,
    FLAGS,
    NEOX_CLASSES,
    QWEN_CLASSES,
    SETTINGS,
    SPECIAL,
    more_special,
    text_of,
)

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as JsonTokenizer


def is_qwen_without_json(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the tokenizer must be built from Qwen's own two files."""
    return (
        settings.get("tokenizer_class") in QWEN_CLASSES
        and not is_there(folder / "tokenizer.json")
        and any(is_there(folder / name) for name in QWEN_FILES)
    )


def load_json_tokenizer(folder: Path, settings: dict[str, Any]) -> JsonBackend:
    """The tokenizer of tokenizer.json with the additions of the settings, as transformers would load it.

    Raises CheckpointError naming file and field.
    """
    is_qwen = is_qwen_without_json(folder, settings)
    place = folder / (QWEN_FILES[0] if is_qwen else "tokenizer.json")
    tokenizer, content = (qwen_tokenizer(folder), {}) if is_qwen else _from_file(place)
    with library_errors(f"{folder / SETTINGS} cannot be used"):
        _add_tokens(tokenizer, settings)
        if settings.get("tokenizer_class") in NEOX_CLASSES:
            _set_prefix(tokenizer, settings)
        if settings.get("tokenizer_class") in ADDED_BY_CLASS:
            _add_ends(tokenizer, settings, folder)
    listed = {token["content"]: int(key) for key, token in (settings.get("added_tokens_decoder") or {}).items()}
    check_added_ids(folder / SETTINGS, "added_tokens_decoder", listed, tokenizer)
    try_out(tokenizer, str(place))
    is_word_first = is_earlier() and content.get("model", {}).get("ignore_merges")
    words = whole_words(tokenizer, str(place)) if is_word_first else {}
    return JsonBackend(tokenizer, words, content.get("pre_tokenizer"))


def _from_file(path: Path) -> tuple[JsonTokenizer, dict[str, Any]]:
    """The tokenizer, and what the file says."""
    text = checkpoint_text(path)
    content = json_object(text, str(path), CheckpointError)
    check_content(path, content)
    try:
        with library_errors(f"{path} cannot be read"):
            tokenizer = read_tokenizer(content, text, str(path))
            tokenizer.no_truncation()
            tokenizer.no_padding()
    except CheckpointError:
        explain(path, content)
        raise
    check_added_ids(path, "added_tokens", added_ids(content), tokenizer)
    return tokenizer, content


def _add_tokens(tokenizer: JsonTokenizer, settings: dict[str, Any]) -> None:
    """Add the tokens that the settings list, with their flags, then the special tokens that are still missing."""
    listed = settings.get("added_tokens_decoder") or {}
    tokens = [_added(listed[index]) for index in sorted(listed, key=int)]
    known = {token.content for token in (*tokenizer.get_added_tokens_decoder().values(), *tokens)}
    extra = settings.get(EXTRA_SPECIAL)
    values = [settings[name] for name in SPECIAL if settings.get(name) is not None]
    values += [*more_special(settings), *(extra.values() if isinstance(extra, dict) else ())]
    for value in values:
        if text_of(value) not in known:
            known.add(text_of(value))
            tokens.append(
                _added({"normalized": False, **(value if isinstance(value, dict) else {"content": value})}, True)
            )
    for special, group in groupby(tokens, lambda token: token.special):
        batch: list[AddedToken | str] = list(group)
        if special:
            tokenizer.add_special_tokens(batch)
        else:
            tokenizer.add_tokens(batch)


def _added(token: dict[str, Any], is_special: bool | None = None) -> AddedToken:
    from tokenizers import AddedToken

    flags = {name: token[name] for name in FLAGS if name in token}
    return AddedToken(token["content"], **(flags if is_special is None else flags | {"special": is_special}))


def _set_prefix(tokenizer: JsonTokenizer, settings: dict[str, Any]) -> None:
    """Of GPT-NeoX's classes the settings, not tokenizer.json, say whether a text begins with a blank of its own.

    They ask the pre-tokenizer alone, not one within a sequence.
    """
    from tokenizers import pre_tokenizers

    if isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        tokenizer.pre_tokenizer.add_prefix_space = bool(settings.get("add_prefix_space"))


def _add_ends(tokenizer: JsonTokenizer, settings: dict[str, Any], folder: Path) -> None:
    """Some classes add bos before a text and eos after it by their own settings, not by tokenizer.json."""
    from tokenizers.processors import TemplateProcessing

    pieces: list[str] = ["$A"]
    tokens: list[tuple[str, int]] = []
    adds_bos, adds_eos = ADDED_BY_CLASS[settings["tokenizer_class"]]
    for name, default, place in (("bos", adds_bos, 0), ("eos", adds_eos, 2)):
        if not settings.get(f"add_{name}_token", default):
            continue
        text = text_of(settings[f"{name}_token"]) if settings.get(f"{name}_token") is not None else None
        index = None if text is None else tokenizer.token_to_id(text)
        if text is None or index is None:
            raise CheckpointError(f"{folder / SETTINGS}: add_{name}_token is set, but there is no {name}_token")
        pieces.insert(place, text)
        tokens.append((text, index))
    tokenizer.post_processor = TemplateProcessing(single=pieces, pair=[*pieces, "$B"], special_tokens=tokens)
