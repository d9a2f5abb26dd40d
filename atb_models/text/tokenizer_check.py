"""What is wrong with a tokenizer.json: what the tokenizers library takes without a word, and what it does not name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atb_models.errors import AtbError, CheckpointError
from atb_models.text.formats.newer_json import EMPTY, read_tokenizer
from atb_models.text.tokenizer_settings import MOST_ID, check_id, check_token
from atb_models.wording import message_lines, shown

PARTS = ("truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model")
PROBE = "a 1\n你"
MOST_SAID = 300  # characters of a message of the library, which may quote a value as a whole


@contextmanager
def library_errors(place: str, error: type[AtbError] = CheckpointError) -> Iterator[None]:
    """Turns what the tokenizers library raises into `error` naming the place.

    It raises plain Exception, and where it fails to check something itself a PanicException, which is no Exception.
    """
    try:
        yield
    except AtbError:
        raise
    except BaseException as failure:
        if not isinstance(failure, Exception) and type(failure).__name__ != "PanicException":
            raise
        raise error(f"{place}: {message_lines(failure)[0][:MOST_SAID]}") from None


def check_content(path: Path, content: dict[str, Any]) -> None:
    """Raises CheckpointError naming the field for what the library would take wrongly, or end with a panic for."""
    model = content.get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{path}: model is {shown(model)}, but must be an object")
    check_vocab(path, model.get("vocab"))
    _check_added(path, content.get("added_tokens"))
    if not isinstance(model.get("ignore_merges"), bool | None):
        said = shown(model["ignore_merges"])
        raise CheckpointError(f"{path}: model.ignore_merges is {said}, but must be true or false")
    if model.get("continuing_subword_prefix"):
        _check_merges_of(path, model)
    _check_post_processor(path, content.get("post_processor"))


def try_out(tokenizer: Any, place: str) -> None:
    """Raises CheckpointError where a tokenizer cannot take a text apart and put it together."""
    with library_errors(f"{place} cannot be used"):
        ids = tokenizer.encode(PROBE).ids
        tokenizer.decode(ids)


def explain(path: Path, content: dict[str, Any]) -> None:
    """Raises CheckpointError naming the field for which the library refuses the file; returns where none is found."""
    for part in PARTS:
        if content.get(part) is None:
            continue
        if part == "model":
            _check_merges_of(path, content["model"])
        with library_errors(f"{path}: {part} cannot be used"):
            tokenizer = read_tokenizer({**EMPTY, part: content[part]}, place=str(path))
            if part != "model":  # whose vocabulary need not have the letters
                tokenizer.decode(tokenizer.encode("a").ids)


def check_vocab(path: Path, vocab: Any, name: str = "model.vocab") -> None:
    """Raises CheckpointError naming the first piece whose id is none or another's. name: of the field.

    A list is Unigram's, which has its ids by place.
    """
    if not isinstance(vocab, (dict, list)) or not vocab:
        raise CheckpointError(f"{path}: {name} is {shown(vocab)}, but must hold the pieces")
    if isinstance(vocab, list):
        return
    seen: dict[int, str] = {}
    for piece, index in vocab.items():
        if type(index) is not int or not 0 <= index <= MOST_ID:
            check_id(path, f"the id of {shown(piece)} in {name}", index)
        if index in seen:
            raise CheckpointError(f"{path}: {name} gives {shown(piece)} and {shown(seen[index])} the id {index}")
        seen[index] = piece


def check_merges(path: Path, merges: Any, vocab: dict[str, int], prefix: Any = "", name: str = "model.merges") -> None:
    """Raises CheckpointError naming the first merge that is none, or whose pieces the vocabulary lacks.

    prefix: continuing_subword_prefix, which a merge takes off its second piece. name: of the field.
    """
    if not isinstance(prefix, str):
        raise CheckpointError(f"{path}: model.continuing_subword_prefix is {shown(prefix)}, but must be a text")
    if not isinstance(merges, list):
        raise CheckpointError(f"{path}: {name} is {shown(merges)}, but must be a list of pairs of pieces")
    for number, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(piece, str) for piece in pair):
            raise CheckpointError(f"{path}: {name}[{number}] is {shown(merge)}, but must be a pair of pieces")
        first, second = pair
        if not second.startswith(prefix):
            why = f"does not begin with continuing_subword_prefix {shown(prefix)}"
            raise CheckpointError(f"{path}: {name}[{number}]: {shown(second)} {why}")
        for piece in (first, second, first + second.removeprefix(prefix)):
            if piece not in vocab:
                raise CheckpointError(f"{path}: {name}[{number}] needs {shown(piece)}, which the vocabulary lacks")


def check_added_ids(path: Path, field: str, ids: dict[str, int], tokenizer: Any) -> None:
    """Raises CheckpointError where the library has given a token another id than the field says; ids: by text."""
    for text, index in ids.items():
        if (given := tokenizer.token_to_id(text)) != index:
            raise CheckpointError(
                f"{path}: {field} gives {shown(text)} the id {index}, but by the rest of the tokenizer it has {given}"
            )


def added_ids(content: dict[str, Any]) -> dict[str, int]:
    """The id of each of tokenizer.json's added tokens, by its text."""
    return {token["content"]: token["id"] for token in content.get("added_tokens") or ()}


def _check_merges_of(path: Path, model: dict[str, Any]) -> None:
    if "merges" in model and isinstance(model["vocab"], dict):
        check_merges(path, model["merges"], model["vocab"], model.get("continuing_subword_prefix") or "")


def _check_added(path: Path, added: Any) -> None:
    if added is not None and not isinstance(added, list):
        raise CheckpointError(f"{path}: added_tokens is {shown(added)}, but must be a list")
    ids: dict[int, int] = {}
    texts: dict[str, int] = {}
    for place, token in enumerate(added or ()):
        name = f"added_tokens[{place}]"
        if not isinstance(token, dict):
            raise CheckpointError(f"{path}: {name} is {shown(token)}, but must be an object with id and content")
        check_token(path, name, token)
        index, text = check_id(path, f"{name}.id", token.get("id")), token["content"]
        if index in ids or text in texts:
            other = ids.get(index, texts.get(text))
            raise CheckpointError(f"{path}: {name} has the id or the text of added_tokens[{other}]")
        ids[index] = texts[text] = place


def _check_post_processor(path: Path, processor: Any) -> None:
    """A template's tokens must be listed with their ids: without them the library panics at the first text."""
    if not isinstance(processor, dict):
        return
    inner = processor.get("processors")
    for one in inner if isinstance(inner, list) else ():
        _check_post_processor(path, one)
    if processor.get("type") != "TemplateProcessing":
        return
    listed = processor.get("special_tokens")
    known = listed if isinstance(listed, dict) else {}
    for name, token in known.items():
        for index in token.get("ids") or () if isinstance(token, dict) else ():
            check_id(path, f"an id of post_processor.special_tokens[{shown(name)}]", index)
    for piece in [*_list(processor.get("single")), *_list(processor.get("pair"))]:
        special = piece.get("SpecialToken") if isinstance(piece, dict) else None
        name = special.get("id") if isinstance(special, dict) else None
        if isinstance(special, dict) and (not isinstance(name, str) or name not in known):
            raise CheckpointError(f"{path}: post_processor names {shown(name)}, which its special_tokens do not list")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
