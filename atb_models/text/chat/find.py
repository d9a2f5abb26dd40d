"""Where a checkpoint's chat template may stand, in transformers' order; nothing is read before a chat is asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from atb_models.errors import CheckpointError, ConfigError, RequestError
from atb_models.files import read_text
from atb_models.json_file import is_there, read_json
from atb_models.models.families import FAMILIES
from atb_models.text.chat.template import ChatTemplate, NamedTemplates
from atb_models.text.tokenizer_settings import SETTINGS

FILE, FOLDER, LEGACY = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
FIELD = "chat_template"
DEFAULT = "default"
FORMS = "a template, an object of templates by name, or a list of objects with name and template"


def find_template(
    folder: Path, settings: Mapping[str, Any], tokens: Mapping[str, Any], given: str | None
) -> ChatTemplate | NamedTemplates | None:
    """The template to use: the user's (a file, a literal, a name), the checkpoint's, or its family's plain format.

    settings: tokenizer_config.json's. tokens: see ChatTemplate. None where nobody documents one.
    Raises ConfigError for the user's own that cannot be used; the checkpoint's tells it when it is to render.
    """
    if given is None:
        return _of_checkpoint(folder, settings, tokens)
    if not os.path.isfile(given) and "{{" not in given and "{%" not in given:
        return _by_name(given, _of_checkpoint(folder, settings, tokens))
    source = read_text(Path(given), f"chat template {given}") if os.path.isfile(given) else given
    template = ChatTemplate(source, tokens, "the given chat template")
    template.compile(ConfigError)
    return template


def _by_name(name: str, found: ChatTemplate | NamedTemplates | None) -> ChatTemplate:
    template = found.named(name) if isinstance(found, NamedTemplates) else None
    if template is None:
        raise ConfigError(
            f"chat_template {name!r} is neither a file nor a Jinja template with {{{{ }}}} or {{% %}}, nor the name of"
            " one of the checkpoint's"
        )
    return template


def _of_checkpoint(
    folder: Path, settings: Mapping[str, Any], tokens: Mapping[str, Any]
) -> ChatTemplate | NamedTemplates | None:
    files = {path.name.removesuffix(".jinja"): path for path in sorted((folder / FOLDER).glob("*.jinja"))}
    if is_there(folder / FILE):
        files[DEFAULT] = folder / FILE
    if files:
        found = {name: ChatTemplate(_reader(path, folder), tokens, _name(path, folder)) for name, path in files.items()}
        return found[DEFAULT] if found.keys() == {DEFAULT} else NamedTemplates(found, FOLDER)
    if settings.get(FIELD) is not None:
        return _of_field(settings[FIELD], tokens, SETTINGS)
    if is_there(folder / LEGACY):
        return ChatTemplate(_legacy_reader(folder / LEGACY), tokens, f"the chat template of {LEGACY}")
    config = folder / "config.json"
    family = FAMILIES.get(str(read_json(config).get("model_type"))) if config.is_file() else None
    if family is None:
        return None
    return ChatTemplate(family.chat_template, tokens, "its family's documented plain format", is_fallback=True)


def _of_field(value: Any, tokens: Mapping[str, Any], file: str) -> ChatTemplate | NamedTemplates:
    """Of the field's three forms."""
    if isinstance(value, str):
        return ChatTemplate(value, tokens, f"the chat template of {file}")
    pairs: list[tuple[Any, Any]] = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        pairs = [(item.get("name"), item.get("template")) for item in value]
    if not pairs or not all(isinstance(part, str) for pair in pairs for part in pair):
        return ChatTemplate(_refusal(f"{file}: {FIELD} must be {FORMS}"), tokens, f"the chat template of {file}")
    return NamedTemplates(
        {name: ChatTemplate(source, tokens, f"the chat template {name!r} of {file}") for name, source in pairs}, file
    )


def _reader(path: Path, folder: Path) -> Callable[[], str]:
    return lambda: read_text(path, _name(path, folder), RequestError)


def _legacy_reader(path: Path) -> Callable[[], str]:
    def read() -> str:
        try:
            source = read_json(path).get(FIELD)
        except CheckpointError as error:
            raise RequestError(str(error).replace(str(path), path.name)) from None
        if not isinstance(source, str):
            raise RequestError(f"{path.name}: {FIELD} is of type {type(source).__name__}, but must be a template")
        return source

    return read


def _refusal(message: str) -> Callable[[], str]:
    def refuse() -> str:
        raise RequestError(message)

    return refuse


def _name(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder))
