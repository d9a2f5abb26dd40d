"""tokenizer_config.json and its companions, checked field by field: the tokens they name and how a text begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from atb_models.errors import CheckpointError
from atb_models.json_file import is_there, read_json
from atb_models.wording import shown

SETTINGS, SPECIAL_MAP = "tokenizer_config.json", "special_tokens_map.json"
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MORE_SPECIAL = "additional_special_tokens"
EXTRA_SPECIAL = "extra_special_tokens"  # the newer name; a list too, or an object of further tokens by name
MOST_ID: Final = (1 << 31) - 1  # token ids are int32 in a step
FLAGS_OF_TEXT = ("add_bos_token", "add_eos_token", "add_prefix_space", "legacy")
FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")

QWEN_CLASSES = frozenset(("Qwen2Tokenizer", "Qwen2TokenizerFast"))
LLAMA_CLASSES = frozenset(("LlamaTokenizer", "LlamaTokenizerFast"))
NEOX_CLASSES = frozenset(("GPTNeoXTokenizer", "GPTNeoXTokenizerFast"))
# Classes of transformers that add nothing to tokenizer.json; the newer ones do not exist in 4.36.
PLAIN_CLASSES = frozenset(("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend")) | QWEN_CLASSES
# Classes that write bos before a text and eos after it whatever tokenizer.json says: whether, where no setting does.
ADDED_BY_CLASS = dict.fromkeys(LLAMA_CLASSES, (True, False)) | dict.fromkeys(NEOX_CLASSES, (False, False))
KNOWN_CLASSES = PLAIN_CLASSES | ADDED_BY_CLASS.keys()
# Special tokens of a class, if the settings name none.
CLASS_TOKENS = dict.fromkeys(LLAMA_CLASSES, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
CLASS_TOKENS |= dict.fromkeys(QWEN_CLASSES, dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"))
CLASS_TOKENS |= dict.fromkeys(NEOX_CLASSES, dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"))

# The class for a checkpoint that names none, by model type, as in transformers 4.57 (models/auto/tokenization_auto.py).
CLASS_OF_MODEL = {
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "llama", "mistral", "mixtral"), "LlamaTokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    "olmoe": "GPTNeoXTokenizer",
}


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; unless it lists the added tokens, special_tokens_map.json replaces its fields.

    Raises CheckpointError naming file and field for a value that cannot be meant.
    """
    settings = _checked(folder / SETTINGS)
    if "added_tokens_decoder" not in settings:
        settings |= _checked(folder / SPECIAL_MAP)
    if settings.get("tokenizer_class") is None and is_there(folder / "config.json"):
        config = read_json(folder / "config.json")
        name = config.get("tokenizer_class", CLASS_OF_MODEL.get(str(config.get("model_type"))))
        settings["tokenizer_class"] = name if isinstance(name, str) else None
    if settings.get("tokenizer_class") is None and not is_there(folder / "tokenizer.json"):
        settings["tokenizer_class"] = "LlamaTokenizer" if is_there(folder / "tokenizer.model") else None
    return {**CLASS_TOKENS.get(str(settings.get("tokenizer_class")), {}), **settings}


def special_tokens(settings: dict[str, Any]) -> dict[str, Any]:
    """Name -> text of the special tokens that are set, for chat templates."""
    extra = settings.get(EXTRA_SPECIAL)
    named: dict[str, Any] = {
        name: text_of(settings[name]) for name in _token_names(settings) if settings.get(name) is not None
    }
    if isinstance(extra, dict):
        named |= {name: text_of(token) for name, token in extra.items()}
    if more := more_special(settings):
        named[MORE_SPECIAL] = [text_of(token) for token in more]
    return named


def more_special(settings: Mapping[str, Any]) -> list[Any]:
    """The special tokens without a name, of either field that may list them."""
    extra = settings.get(EXTRA_SPECIAL)
    return [*(settings.get(MORE_SPECIAL) or ()), *(extra if isinstance(extra, list) else ())]


def eos_texts(folder: Path) -> dict[str, str]:
    """The end of an answer that each file of the tokenizer names, by the file's name."""
    files = {name: _checked(folder / name).get("eos_token") for name in (SETTINGS, SPECIAL_MAP)}
    return {name: text_of(token) for name, token in files.items() if token is not None}


def text_of(token: Any) -> str:
    """The text of a token, which stands for itself or is an object with its flags."""
    return str(token["content"] if isinstance(token, dict) else token)


def _token_names(settings: dict[str, Any]) -> list[str]:
    """The fields that name a token: the usual ones, and others of a text such as image_token."""
    more = (name for name, value in settings.items() if name.endswith("_token") and isinstance(value, str))
    return [*SPECIAL, *(name for name in more if name not in SPECIAL)]


def _checked(path: Path) -> dict[str, Any]:
    """The fields of a file, {} where there is none; those that are used here have values that can be meant."""
    if not is_there(path):
        return {}
    fields = read_json(path)
    _check(path, fields, "tokenizer_class", str, "a text")
    for name in FLAGS_OF_TEXT:
        _check(path, fields, name, bool, "true or false")
    for name in SPECIAL:
        if fields.get(name) is not None:
            check_token(path, name, fields[name])
    for name, kinds in ((MORE_SPECIAL, list), (EXTRA_SPECIAL, (list, dict))):
        _check(path, fields, name, kinds, "a list of tokens")
        tokens = fields.get(name) or ()
        for key, token in tokens.items() if isinstance(tokens, dict) else enumerate(tokens):
            check_token(path, f"{name}[{key}]", token)
    auto_map = fields.get("auto_map")
    classes = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
    for class_name in classes if isinstance(classes, list) else [classes]:
        if not isinstance(class_name, str | None):
            raise CheckpointError(f"{path}: auto_map names {shown(class_name)}, but must name classes as file.Class")
    _check(path, fields, "added_tokens_decoder", dict, "an object of tokens by id")
    _check_listed(path, fields.get("added_tokens_decoder") or {})
    return fields


def _check(path: Path, fields: dict[str, Any], name: str, kinds: type | tuple[type, ...], must: str) -> None:
    value = fields.get(name)
    if value is not None and not isinstance(value, kinds):
        raise CheckpointError(f"{path}: {name} is {shown(value)}, but must be {must}")


def check_token(path: Path, name: str, token: Any) -> None:
    """Raises CheckpointError unless the field is a token: a text, or an object with its text and flags."""
    is_object = isinstance(token, dict)
    text = token.get("content") if is_object else token
    if not isinstance(text, str) or not text:
        raise CheckpointError(f"{path}: {name} is {shown(token)}, but must be a token, a text that is not empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"{path}: {name} is {shown(token)}, which has half a surrogate pair, no text") from None
    for flag, value in token.items() if is_object else ():
        if flag in FLAGS and not isinstance(value, bool):
            raise CheckpointError(f"{path}: {flag} of {name} is {shown(value)}, but must be true or false")


def check_id(path: Path, name: str, index: Any) -> int:
    """The token id. Raises CheckpointError naming the field where it is none."""
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index <= MOST_ID:
        raise CheckpointError(f"{path}: {name} is {shown(index)}, but must be a token id from 0 to {MOST_ID}")
    return index


def _check_listed(path: Path, listed: dict[str, Any]) -> None:
    """added_tokens_decoder: ids as texts, each with its token."""
    ids: dict[int, str] = {}
    texts: dict[str, str] = {}
    for key, token in listed.items():
        name = f"added_tokens_decoder[{shown(key)}]"
        index = check_id(path, f"the id of {name}", int(key) if key.isdecimal() and len(key) < 20 else key)
        if not isinstance(token, dict):
            raise CheckpointError(f"{path}: {name} is {shown(token)}, but must be an object with content")
        check_token(path, name, token)
        if index in ids or token["content"] in texts:
            other = ids.get(index, texts.get(token["content"]))
            raise CheckpointError(f"{path}: {name} has the id or the text of added_tokens_decoder[{other!r}]")
        ids[index] = texts[token["content"]] = key
