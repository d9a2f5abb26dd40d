"""tokenizer.json as tokenizers 0.19 and later write it, for an earlier release: that refuses it, or misreads it.

transformers 4.36 keeps tokenizers below 0.19. What is new in these files: merges as pairs, ignore_merges, and the
fields prepend_scheme and split of Metaspace. Source: the sources of tokenizers 0.21 (models/bpe/model.rs,
pre_tokenizers/metaspace.rs).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from atb_models.errors import CheckpointError
from atb_models.text.formats.metaspace import Metaspace
from atb_models.wording import shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer as JsonTokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

EMPTY = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
METASPACE_FIELDS = ("prepend_scheme", "split")
SCHEMES = ("always", "first", "never")
BPE_OPTIONS = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback")
SAMPLE = {
    **EMPTY,
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
}


@cache
def is_earlier() -> bool:
    """Whether the installed release of tokenizers cannot read what this file is about."""
    from tokenizers import Tokenizer as JsonTokenizer

    try:
        JsonTokenizer.from_str(json.dumps(SAMPLE))
    except Exception:  # the library raises plain Exception
        return True
    return False


def read_tokenizer(content: Mapping[str, Any], text: str | None = None, place: str = "") -> JsonTokenizer:
    """The tokenizer of a tokenizer.json, whichever release wrote it; `ignore_merges` is left to whole_words.py.

    text: that of the content, if there is one. place: what messages call the file. Raises CheckpointError for what
    cannot be the same in an earlier release, and what the library raises.
    """
    from tokenizers import Tokenizer as JsonTokenizer

    if is_earlier() and _has_news(content):
        return _translated(content, place)
    return JsonTokenizer.from_str(json.dumps(content) if text is None else text)


def _has_news(content: Mapping[str, Any]) -> bool:
    """Whether the content has anything that an earlier release cannot read."""
    merges = content["model"].get("merges")
    has_pairs = isinstance(merges, list) and any(isinstance(merge, list) for merge in merges)
    parts = (*_parts(content.get("pre_tokenizer"), "pretokenizers"), *_parts(content.get("decoder"), "decoders"))
    return has_pairs or any(map(_is_new_metaspace, parts))


def _translated(content: Mapping[str, Any], place: str) -> JsonTokenizer:
    from tokenizers import Tokenizer as JsonTokenizer

    state = {**content, "model": dict(content["model"])}
    pre_tokenizer = content.get("pre_tokenizer")
    is_replaced = any(map(_is_new_metaspace, _parts(pre_tokenizer, "pretokenizers")))
    if is_replaced:
        state["pre_tokenizer"] = None
    if content.get("decoder") is not None:
        state["decoder"] = _earlier_decoder(content["decoder"], place)
    pairs = _pairs_with_blanks(state["model"])
    tokenizer = JsonTokenizer.from_str(json.dumps(state)) if pairs is None else _of_pairs(state, pairs)
    if is_replaced:
        tokenizer.pre_tokenizer = _pre_tokenizer(pre_tokenizer, place)
    return tokenizer


def _pairs_with_blanks(model: dict[str, Any]) -> list[tuple[str, str]] | None:
    """The merges that cannot be written as "a b", for a piece has a blank; None where all can, and are now."""
    merges = model.get("merges")
    if not isinstance(merges, list) or not any(isinstance(merge, list) for merge in merges):
        return None
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    if any(" " in piece for pair in pairs for piece in pair):
        return pairs
    model["merges"] = [" ".join(pair) for pair in pairs]
    return None


def _of_pairs(state: dict[str, Any], pairs: list[tuple[str, str]]) -> JsonTokenizer:
    """The model is given to the library as an object, which takes any piece; the added tokens must follow it."""
    from tokenizers import AddedToken, models
    from tokenizers import Tokenizer as JsonTokenizer

    model, added = state["model"], state.get("added_tokens") or ()
    options = {name: model[name] for name in BPE_OPTIONS if model.get(name) is not None}
    tokenizer = JsonTokenizer.from_str(json.dumps({**state, "model": EMPTY["model"], "added_tokens": []}))
    tokenizer.model = models.BPE(model["vocab"], pairs, **options)
    for token in added:
        flags = {name: value for name, value in token.items() if name not in ("id", "content")}
        add = tokenizer.add_special_tokens if token.get("special") else tokenizer.add_tokens
        add([AddedToken(token["content"], **flags)])
    return tokenizer


def _pre_tokenizer(state: Any, place: str, *, is_first: bool = True) -> PreTokenizer:
    """The pre-tokenizer of its state. is_first: no other one divides the text before it."""
    from tokenizers import Tokenizer as JsonTokenizer
    from tokenizers import pre_tokenizers

    if state.get("type") == "Sequence":
        inner = state["pretokenizers"]
        return pre_tokenizers.Sequence(
            [_pre_tokenizer(one, place, is_first=is_first and i == 0) for i, one in enumerate(inner)]
        )
    if not _is_new_metaspace(state):
        return JsonTokenizer.from_str(json.dumps({**EMPTY, "pre_tokenizer": state})).pre_tokenizer
    scheme = _scheme(state, "pre_tokenizer", place)
    if scheme == "first" and not is_first:
        raise CheckpointError(
            f"{place}: pre_tokenizer has a Metaspace with prepend_scheme 'first' behind another pre-tokenizer, which"
            " takes tokenizers 0.20 or later"
        )
    splits = state.get("split")
    metaspace: Any = Metaspace(state["replacement"], scheme, splits=True if splits is None else splits)
    return pre_tokenizers.PreTokenizer.custom(metaspace)


def _earlier_decoder(state: Any, place: str) -> Any:
    """The state with Metaspace as earlier releases write it: all that its decoder asks is whether blanks are put."""
    if state.get("type") == "Sequence":
        return {**state, "decoders": [_earlier_decoder(one, place) for one in state["decoders"]]}
    if not _is_new_metaspace(state):
        return state
    puts_blanks = _scheme(state, "decoder", place) != "never"
    return {"type": "Metaspace", "replacement": state["replacement"], "add_prefix_space": puts_blanks}


def _scheme(state: Mapping[str, Any], field: str, place: str) -> str:
    scheme = state.get("prepend_scheme") or ("never" if state.get("add_prefix_space") is False else "always")
    if scheme not in SCHEMES:
        raise CheckpointError(f"{place}: {field} has prepend_scheme {shown(scheme)}, but must have one of {SCHEMES}")
    if not isinstance(state.get("replacement"), str) or len(state["replacement"]) != 1:
        said = shown(state.get("replacement"))
        raise CheckpointError(f"{place}: {field} has replacement {said}, but must have one character")
    if not isinstance(state.get("split"), bool | None):
        raise CheckpointError(f"{place}: {field} has split {shown(state['split'])}, but must have true or false")
    return str(scheme)


def _is_new_metaspace(state: Mapping[str, Any]) -> bool:
    return state.get("type") == "Metaspace" and any(state.get(name) is not None for name in METASPACE_FIELDS)


def _parts(state: Any, inner: str) -> Iterator[Mapping[str, Any]]:
    """A component, or those that it is a sequence of; nothing of what has no such form."""
    if not isinstance(state, dict):
        return
    if state.get("type") == "Sequence":
        for one in state[inner] if isinstance(state.get(inner), list) else ():
            yield from _parts(one, inner)
    else:
        yield state
