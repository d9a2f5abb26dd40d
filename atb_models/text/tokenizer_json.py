"""tokenizer.json and its settings, loaded with the tokenizers library alone: transformers takes seconds to import."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atb_models.errors import CheckpointError
from atb_models.json_file import check_present, is_there, read_json
from atb_models.text.tokenizer_bpe import QWEN_CLASSES, QWEN_FILES, qwen_tokenizer

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as JsonTokenizer

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MORE_SPECIAL = "additional_special_tokens"

# Classes of transformers that add nothing to tokenizer.json; the newer ones do not exist in 4.36.
PLAIN_CLASSES = frozenset(("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend")) | QWEN_CLASSES
LLAMA_CLASSES = frozenset(("LlamaTokenizer", "LlamaTokenizerFast"))
# Special tokens of a class, if the settings name none.
CLASS_TOKENS = dict.fromkeys(LLAMA_CLASSES, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
CLASS_TOKENS |= dict.fromkeys(QWEN_CLASSES, dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"))

# The class for a checkpoint that names none, by model type.
CLASS_OF_MODEL = {"qwen2_moe": "Qwen2Tokenizer"}


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; unless it lists the added tokens, special_tokens_map.json replaces its fields."""
    settings: dict[str, Any] = {}
    if is_there(folder / "tokenizer_config.json"):
        settings = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings and is_there(folder / "special_tokens_map.json"):
        settings |= read_json(folder / "special_tokens_map.json")
    if settings.get("tokenizer_class") is None and is_there(folder / "config.json"):
        config = read_json(folder / "config.json")
        settings["tokenizer_class"] = config.get("tokenizer_class", CLASS_OF_MODEL.get(str(config.get("model_type"))))
    return {**CLASS_TOKENS.get(str(settings.get("tokenizer_class")), {}), **settings}


def special_tokens(settings: dict[str, Any]) -> dict[str, Any]:
    """Name -> text of the special tokens that are set, for chat templates."""
    named: dict[str, Any] = {name: _content(settings[name]) for name in SPECIAL if settings.get(name) is not None}
    if settings.get(MORE_SPECIAL):
        named[MORE_SPECIAL] = [_content(token) for token in settings[MORE_SPECIAL]]
    return named


def is_qwen_without_json(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the tokenizer must be built from Qwen's own two files."""
    return (
        settings.get("tokenizer_class") in QWEN_CLASSES
        and not is_there(folder / "tokenizer.json")
        and any(is_there(folder / name) for name in QWEN_FILES)
    )


def load_json_tokenizer(folder: Path, settings: dict[str, Any]) -> JsonTokenizer:
    """The tokenizer of tokenizer.json with the additions of the settings, as transformers would load it."""
    is_qwen = is_qwen_without_json(folder, settings)
    tokenizer = qwen_tokenizer(folder) if is_qwen else _from_file(folder / "tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _add_tokens(tokenizer, settings)
    if settings.get("tokenizer_class") in LLAMA_CLASSES:
        _add_llama_template(tokenizer, settings, folder)
    return tokenizer


def _from_file(path: Path) -> JsonTokenizer:
    """Newer versions of tokenizers write each merge as a list of two; older ones read only "a b"."""
    from tokenizers import Tokenizer as JsonTokenizer

    check_present(path)
    try:
        return JsonTokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        content = read_json(path)
        model = content.get("model")
        merges = model.get("merges") if isinstance(model, dict) else None
        if not isinstance(model, dict) or not merges or not isinstance(merges[0], list):
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        if any(" " in piece for merge in merges for piece in merge):
            reason = "merges pieces with blanks, which this version of tokenizers cannot read"
            raise CheckpointError(f"{path} {reason}") from error
    model["merges"] = [" ".join(merge) for merge in merges]
    model.pop("ignore_merges", None)
    try:
        return JsonTokenizer.from_str(json.dumps(content))
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _add_tokens(tokenizer: JsonTokenizer, settings: dict[str, Any]) -> None:
    """Add the tokens that the settings list, with their flags, then the special tokens that are still missing."""
    from tokenizers import AddedToken

    listed = settings.get("added_tokens_decoder") or {}
    tokens = [AddedToken(**listed[index]) for index in sorted(listed, key=int)]
    known = {token.content for token in (*tokenizer.get_added_tokens_decoder().values(), *tokens)}
    values = [settings[name] for name in SPECIAL if settings.get(name) is not None]
    for value in (*values, *(settings.get(MORE_SPECIAL) or ())):
        if _content(value) not in known:
            known.add(_content(value))
            flags = {key: flag for key, flag in value.items() if key != "__type"} if isinstance(value, dict) else {}
            tokens.append(AddedToken(**{"content": value, "normalized": False, **flags, "special": True}))
    for special, group in groupby(tokens, lambda token: token.special):
        batch: list[AddedToken | str] = list(group)
        if special:
            tokenizer.add_special_tokens(batch)
        else:
            tokenizer.add_tokens(batch)


def _add_llama_template(tokenizer: JsonTokenizer, settings: dict[str, Any], folder: Path) -> None:
    """Llama's classes add bos before a text and eos after it by their own settings, not by tokenizer.json."""
    from tokenizers.processors import TemplateProcessing

    pieces: list[str] = ["$A"]
    tokens: list[tuple[str, int]] = []
    for name, default, place in (("bos", True, 0), ("eos", False, 2)):
        if not settings.get(f"add_{name}_token", default):
            continue
        text = _content(settings[f"{name}_token"]) if settings.get(f"{name}_token") is not None else None
        index = None if text is None else tokenizer.token_to_id(text)
        if text is None or index is None:
            file = folder / "tokenizer_config.json"
            raise CheckpointError(f"{file}: add_{name}_token is set, but there is no {name}_token")
        pieces.insert(place, text)
        tokens.append((text, index))
    tokenizer.post_processor = TemplateProcessing(single=pieces, pair=[*pieces, "$B"], special_tokens=tokens)


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)
