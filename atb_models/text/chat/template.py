"""From a conversation to a prompt in the model's form: a Jinja template, rendered in a sandbox."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atb_models.errors import AtbError, RequestError

if TYPE_CHECKING:
    from jinja2 import Template

    from atb_models.text.chat.words import TemplateWords

logger = logging.getLogger(__name__)

ROLES = ("system", "user", "assistant")
KEYS = ("role", "content")
# Keys that tell how a message came to be, by its role: interfaces send them always, and a template may do without them.
ORIGIN_KEYS = {"tool": ("tool_call_id", "name"), "assistant": ("reasoning_content",)}

Message = Mapping[str, Any]


class ChatTemplate:
    """A template, read and compiled when first needed.

    source: its text, or what gives it. tokens: the special tokens that it may name, such as bos_token. origin: what
    messages call it; clients read them, so it holds no path.
    is_fallback: the family's documented plain format, for a checkpoint without a template; its first use is logged.
    """

    def __init__(
        self, source: str | Callable[[], str], tokens: Mapping[str, Any], origin: str, *, is_fallback: bool = False
    ) -> None:
        self._source = source
        self._tokens = dict(tokens)
        self._origin = origin
        self._is_fallback = self._to_announce = is_fallback
        self._compiled: tuple[Template, TemplateWords] | None = None

    def render(self, conversation: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The text of a conversation.

        variables: more that the template reads, such as tools and documents, which are None otherwise.
        Raises RequestError when the template cannot be used or does not read one of the variables, a message is
        malformed or the template refuses it.
        """
        template, words = self.compile()
        unread = [name for name, value in variables.items() if name not in words.names and value is not None]
        if unread:
            raise RequestError(f"{self._origin} does not read {', '.join(unread)}")
        messages = self._checked(conversation, words)
        if self._to_announce:
            self._to_announce = False
            logger.warning("the checkpoint has no chat template: using %s", self._origin)
        names = {"tools": None, "documents": None, **self._tokens, **variables}
        try:
            return template.render(**names, messages=messages, add_generation_prompt=add_generation_prompt)
        except Exception as error:  # a template is a program and may fail in any way
            raise RequestError(f"{self._origin} cannot render this conversation: {_said(error)}") from error

    def compile(self, error: type[AtbError] = RequestError) -> tuple[Template, TemplateWords]:
        """The template, ready to render, and what it reads. Raises `error` naming the line that is no Jinja."""
        if self._compiled is None:
            from jinja2 import TemplateSyntaxError

            from atb_models.text.chat.environment import make_environment
            from atb_models.text.chat.words import words_of

            source = self._source if isinstance(self._source, str) else self._source()
            environment = make_environment()
            try:
                self._compiled = environment.from_string(source), words_of(environment.parse(source))
            except TemplateSyntaxError as failure:
                place = f"{self._origin} is no valid Jinja template, line {failure.lineno}"
                raise error(f"{place}: {_said(failure)}") from failure
            except Exception as failure:  # nested too deeply, or Python refuses what Jinja made of it
                raise error(f"{self._origin} is no valid Jinja template: {_said(failure)}") from failure
        return self._compiled

    def _checked(self, conversation: Sequence[Message], words: TemplateWords) -> list[Message]:
        """The messages as the template takes them.

        Roles and keys beyond the usual ones are fine only where the template does something with them.
        """
        if not isinstance(conversation, (list, tuple)) or not conversation:
            raise RequestError("a conversation must be a list of messages, at least one, each with role and content")
        return [self._checked_message(i, message, words) for i, message in enumerate(conversation)]

    def _checked_message(self, i: int, message: Message, words: TemplateWords) -> Message:
        if not isinstance(message, Mapping):
            raise RequestError(f"message {i} is {type(message).__name__}, but must have role and content")
        calls_tools = bool(message.get("tool_calls")) and "tool_calls" in words.keys
        missing = [key for key in KEYS if key not in message and not (key == "content" and calls_tools)]
        if missing:
            raise RequestError(f"message {i} has no {' and no '.join(missing)}")
        known = {*KEYS, *words.keys, *ORIGIN_KEYS.get(str(message.get("role")), ())}
        extra = [str(key) for key, value in message.items() if key not in known and value is not None]
        if extra and not words.any_key:
            raise RequestError(f"message {i} has {', '.join(extra)}, which {self._origin} does not use")
        role = message["role"]
        shown = words.any_role and not self._is_fallback
        if not isinstance(role, str) or not (role in ROLES or role in words.roles or shown):
            raise RequestError(f"message {i} has the role {role!r}, but only {', '.join(ROLES)} are known")
        content = message.get("content")
        if isinstance(content, str) or (content is None and calls_tools):
            return message
        if isinstance(content, (list, tuple)) and content and all(isinstance(part, Mapping) for part in content):
            are_texts = all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in content)
            if are_texts and not words.walks_parts:  # a template that asks only whether it is text may show it as it is
                return {**message, "content": "".join(part["text"] for part in content)}
            if words.takes_parts:
                return message
        raise RequestError(f"message {i} has content of type {type(content).__name__}, but must have text")


class NamedTemplates:
    """Several templates by name: "tool_use" is for a chat with tools, "default" for all others."""

    def __init__(self, templates: Mapping[str, ChatTemplate], origin: str) -> None:
        self._templates = dict(templates)
        self._origin = origin

    def render(self, conversation: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """As ChatTemplate.render, of the template that fits. Raises RequestError too where none is the default."""
        has_tools = variables.get("tools") is not None
        chosen = (self._templates.get("tool_use") if has_tools else None) or self._templates.get("default")
        if chosen is None:
            names = ", ".join(sorted(self._templates))
            raise RequestError(
                f"{self._origin} has several chat templates, {names}, and none is the default;"
                " name one with --chat_template"
            )
        return chosen.render(conversation, add_generation_prompt=add_generation_prompt, **variables)

    def named(self, name: str) -> ChatTemplate | None:
        """The template of that name."""
        return self._templates.get(name)


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
