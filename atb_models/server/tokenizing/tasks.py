"""What is asked of a tokenizer. Functions of a module, so that their names can be sent to another process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from atb_models.errors import RequestError
from atb_models.text.chat.template import Message
from atb_models.text.tokenizer import Tokenizer

Task = Callable[..., Any]  # takes a tokenizer first


def encode(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    """Token ids of a text."""
    return tokenizer.encode(text, add_special_tokens)


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool, most_tokens: int
) -> list[int]:
    """Token ids of a conversation. Raises RequestError as `check_size`, or where the template refuses it."""
    text = tokenizer.render_chat(messages, add_generation_prompt)
    check_size(tokenizer, text, most_tokens)
    return tokenizer.encode(text, add_special_tokens=False)


def decode(tokenizer: Tokenizer, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
    """The text of token ids."""
    return tokenizer.decode(token_ids, skip_special_tokens)


def check_size(tokenizer: Tokenizer, text: str, most_tokens: int | None) -> None:
    """Raise RequestError for a text whose bytes alone tell that it has more than `most_tokens` (None: no limit)."""
    if most_tokens is None or len(text) <= most_tokens:  # not worth counting its bytes, which takes a copy
        return
    size = len(text.encode("utf-8", "surrogatepass"))
    least = tokenizer.least_tokens(size)
    if least > most_tokens:
        raise RequestError(
            f"the text has {size} bytes, which are at least {least} tokens, but at most {most_tokens} fit;"
            " shorten it, or raise max_seq_len or kv_blocks"
        )
