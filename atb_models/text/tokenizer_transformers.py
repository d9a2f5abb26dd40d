"""Tokenizers that only a class of transformers can read: the only file that imports transformers, where it must."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from atb_models.errors import CheckpointError, RequestError
from atb_models.json_file import is_there, read_json
from atb_models.text.token_bytes import most_bytes_of_a_token
from atb_models.text.tokenizer_check import check_content, library_errors
from atb_models.wording import pip_install


def transformers_has(name: str | None) -> bool:
    """Whether this version of transformers has the tokenizer class, fast or slow."""
    if name is None:
        return False
    with _quiet_transformers():
        from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

        return any(tokenizer_class_from_name(n) is not None for n in (name, f"{name}Fast"))


class TransformersBackend:
    """A tokenizer class of transformers, loaded from the folder only."""

    def __init__(self, folder: Path, *, trust_remote_code: bool) -> None:
        file = folder / "tokenizer.json"
        if is_there(file):
            check_content(file, read_json(file))
        with _quiet_transformers():
            from transformers import AutoTokenizer

            try:
                with library_errors(f"the tokenizer in {folder} cannot be loaded"):
                    self._tokenizer: Any = AutoTokenizer.from_pretrained(
                        str(folder), local_files_only=True, trust_remote_code=trust_remote_code
                    )
            except CheckpointError as error:  # a class, or its own code, may raise anything
                if "sentencepiece" in str(error).lower() or "protobuf" in str(error).lower():
                    command = pip_install("sentencepiece", "protobuf")
                    raise CheckpointError(f"{error}; it needs: {command}") from None
                raise
        self.tokens: dict[str, Any] = dict(self._tokenizer.special_tokens_map)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        with library_errors("the checkpoint's tokenizer cannot take this text", RequestError):
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
            return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    @cached_property
    def most_bytes_of_a_token(self) -> int | None:
        fast = getattr(self._tokenizer, "backend_tokenizer", None)
        return None if fast is None else most_bytes_of_a_token(fast)

    def token_to_id(self, token: str) -> int | None:
        index: int | None = self._tokenizer.convert_tokens_to_ids(token)
        return index

    def id_to_token(self, token_id: int) -> str | None:
        token: Any = self._tokenizer.convert_ids_to_tokens(token_id)
        return token if isinstance(token, str) else None  # Qwen's own class returns bytes


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keeps transformers from logging at import what does not concern tokenizers, such as missing frameworks."""
    library = logging.getLogger("transformers")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        library.setLevel(level)
