"""From a conversation to a prompt in the model's form: Jinja templates, rendered in a sandbox."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from atb_models.errors import ConfigError, RequestError
from atb_models.json_file import read_json
from atb_models.models.families import FAMILIES

logger = logging.getLogger(__name__)

ROLES = ("system", "user", "assistant")
KEYS = ("role", "content")

Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled template. tokens: the special tokens that it may name, such as bos_token.

    is_fallback: the family's documented plain format, for a checkpoint without a template; its first use is logged.
    """

    def __init__(self, source: str, tokens: Mapping[str, Any], origin: str, *, is_fallback: bool = False) -> None:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ConfigError(f"{origin} is no valid Jinja template: {error}") from error
        self._tokens = dict(tokens)
        self._origin = origin
        self._to_announce = is_fallback
        self._words = set(re.findall(r"""['".]\s*(\w+)""", source))
        self._roles = {*ROLES, *_compared_words(source)}

    def render(self, conversation: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation. Raises RequestError for a malformed message, or if the template refuses it."""
        from jinja2 import TemplateError

        self._check(conversation)
        if self._to_announce:
            self._to_announce = False
            logger.warning("the checkpoint has no chat template: using %s", self._origin)
        try:
            return self._template.render(
                messages=conversation, add_generation_prompt=add_generation_prompt, **self._tokens
            )
        except (TemplateError, TypeError) as error:
            raise RequestError(f"{self._origin} cannot render this conversation: {error}") from error

    def _check(self, conversation: Sequence[Message]) -> None:
        """Raises RequestError. Roles and keys beyond the usual ones are accepted only if the template names them."""
        if not isinstance(conversation, (list, tuple)) or not conversation:
            raise RequestError("a conversation must be a list of messages, at least one, each with role and content")
        for i, message in enumerate(conversation):
            if not isinstance(message, Mapping):
                raise RequestError(f"message {i} is {type(message).__name__}, but must have role and content")
            missing = [key for key in KEYS if key not in message]
            if missing:
                raise RequestError(f"message {i} has no {' and no '.join(missing)}")
            extra = [str(key) for key in message if key not in KEYS and key not in self._words]
            if extra:
                raise RequestError(f"message {i} has {', '.join(extra)}, which {self._origin} does not use")
            role, content = message["role"], message["content"]
            if role not in self._roles:
                raise RequestError(f"message {i} has the role {role!r}, but only {', '.join(ROLES)} are known")
            if not isinstance(content, str):
                raise RequestError(f"message {i} has content of type {type(content).__name__}, but must have text")


def _compared_words(source: str) -> set[str]:
    """The words in a template's comparisons, such as == "tool" and in ["user", "function"]."""
    compared = re.findall(r"""[=!]=\s*['"](\w+)['"]|['"](\w+)['"]\s*[=!]=""", source)
    lists = re.findall(r"\bin\s*[\[(]([^\])]*)[\])]", source)
    return {word for pair in compared for word in pair if word} | set(re.findall(r"\w+", " ".join(lists)))


def find_template(
    folder: Path, settings: Mapping[str, Any], tokens: Mapping[str, Any], given: str | None
) -> ChatTemplate | None:
    """The template to use: the user's (a file or its text), else the checkpoint's, else its family's plain format."""
    if given is not None:
        return ChatTemplate(_given_template(given), tokens, "the given chat template")
    file, config = folder / "chat_template.jinja", folder / "config.json"
    if file.is_file():
        return ChatTemplate(file.read_text(encoding="utf-8"), tokens, str(file))
    source: Any = settings.get("chat_template")
    if isinstance(source, list):  # several templates with names
        source = next((item.get("template") for item in source if item.get("name") == "default"), None)
    if source is not None:
        return ChatTemplate(str(source), tokens, f"the chat template of {folder / 'tokenizer_config.json'}")
    family = FAMILIES.get(str(read_json(config).get("model_type"))) if config.is_file() else None
    if family is None:
        return None
    return ChatTemplate(family.chat_template, tokens, "its family's documented plain format", is_fallback=True)


def _given_template(value: str) -> str:
    """The text of a template that is given as the path of a file or as text."""
    if os.path.isfile(value):
        try:
            return Path(value).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"chat template {value} cannot be read: {error}") from error
    if "{{" in value or "{%" in value:
        return value
    raise ConfigError(f"chat_template {value!r} is neither a file nor a Jinja template with {{{{ }}}} or {{% %}}")


def _raise_exception(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)
