"""The words after `run.sh`: MindIE's order, read by position."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from atb_models.errors import ConfigError
from atb_models.fetch import model_folder
from atb_models.wording import counted
from modeltest.command import lists
from modeltest.command.cases import MODES, SHOT_SETS, Nodes, Run
from modeltest.command.families import MODEL_TYPES
from modeltest.command.nodes import check_nodes
from modeltest.command.texts import read_texts
from modeltest.command.words import Words

DTYPES = {"pa_fp16": "fp16", "pa_bf16": "bf16"}
REFUSED_TYPES = {
    "fa": "attention without pages, as Hugging Face computes it, is not supported; say pa_fp16 or pa_bf16",
    "basic": "a model without a dtype is not supported; say pa_fp16 or pa_bf16",
}
COMPARED = "it compared two machines' logits; run a full_ mode on each and `compare` the results"
NO_SET = "this question set is not supported"
REFUSED_MODES = {
    "simplified_GSM8K": COMPARED, "simplified_TruthfulQA": COMPARED, "edge_BoolQ": NO_SET, "edge_GSM8K": NO_SET,
    **{f"full_{name}": NO_SET for name in
       ("HumanEval_X", "GPQA", "AIME2024", "LongBench", "LongBench-E", "NeedleBench")},
}  # fmt: skip
PAIRS = tuple((length, length) for length in (256, 512, 1024, 2048))
BATCH_RANGE = (1, 2000)
PARALLEL = ("dp", "tp", "sp", "moe_tp", "moe_ep", "pp", "microbatch", "cp")
# Words of performance, between batch size and model name, that are refused.
PREFILL = "a prefill step takes the prompts that wait, as many tokens as a step has; leave it out"
REFUSED_SIZES = {
    "prefill_length": PREFILL,
    "dataset": "speed is measured on random tokens of the lengths asked for, which no text changes; leave it out",
}
LORA = "LoRA adapters are not supported"
ENCRYPTED = "encrypted weights are not supported"
T = TypeVar("T")


def parse(words: Sequence[str], option: str = "") -> Run:
    """The run that the words ask for. option: the one behind them, if any.

    Raises ConfigError with the word, its position from 1 and what was expected there; and for weights, a file of
    prompts or a rank table that cannot be read.
    """
    cursor = Words(words, option)
    dtype = _choice(cursor, "model_type", DTYPES, REFUSED_TYPES)
    mode = _choice(cursor, "test_mode", {name: name for name in MODES}, REFUSED_MODES)
    pairs = _pairs(cursor) if mode.startswith("performance") or mode == "precision_single" else ()
    shots = cursor.take("the number of shots, 0 or more", _whole) if mode.removeprefix("full_") in SHOT_SETS else None
    texts = _texts(cursor) if mode.endswith("_single") else ()
    batch_sizes, time_limit = _batch_sizes(cursor, mode, len(pairs))
    model = _choice(cursor, "model_name", {name: name for name in MODEL_TYPES}, {})
    chat = cursor.take_if({"chat": True, "base": False}.get) or False
    if cursor.peek() == "lora":
        cursor.refuse_known(LORA)
    weight_dir = _weights(cursor)
    trusted = cursor.take_if({"trust_remote_code": True}.get) or False
    if "encrypt" in cursor.peek():
        cursor.refuse_known(ENCRYPTED)
    chips, nodes = _ranks(cursor)
    parallel = _parallel(cursor, chips)
    limit = cursor.take_if(lists.number)
    if cursor.left:
        before = [] if parallel else [f"a list [{','.join(PARALLEL)}]"]
        before = [] if limit else [*before, "max_position_embedding, a number"]
        cursor.refuse(", ".join([*before, "options such as --limit"]))
    return Run(
        dtype, mode, model, weight_dir, chips, batch_sizes, pairs=pairs, shots=shots, time_limit_ms=time_limit,
        texts=texts, chat=chat, trust_remote_code=trusted, max_position_embedding=limit, parallel=parallel, nodes=nodes,
    )  # fmt: skip


def _choice(cursor: Words, name: str, known: dict[str, str], refused: dict[str, str]) -> str:
    if cursor.peek() in refused:
        cursor.refuse_known(f"{refused[cursor.peek()]} ({name} is one of {', '.join(known)})")
    return cursor.take(f"{name}, one of {', '.join(known)}", known.get)


def _pairs(cursor: Words) -> tuple[tuple[int, int], ...]:
    """`[]` stands for the default ones."""
    if cursor.take_if({"[]": True}.get):
        return PAIRS
    return cursor.take_list("pairs of prompt and answer tokens such as [[256,256],[128,128]], or []", _as_pairs)


def _as_pairs(text: str) -> tuple[tuple[int, int], ...] | None:
    return lists.nested(text, _pair)


def _pair(text: str) -> tuple[int, int] | None:
    values = lists.flat(text)
    return (values[0], values[1]) if values and len(values) == 2 else None


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(lists.NUMBER, text) else None


def _texts(cursor: Words) -> tuple[str, ...]:
    where = cursor.at()
    word = cursor.take("""prompts: a list such as '["Who are you?"]', or a file with one a line""", lambda word: word)
    return read_texts(word, where)


def _batch_sizes(cursor: Words, mode: str, pairs: int) -> tuple[tuple[tuple[int, ...], ...], float | None]:
    """Batch sizes and the time limit of performance_maxbs, in milliseconds."""
    if mode == "performance_maxbs":
        ranges = _each(cursor, _range, pairs)
        before = "" if ranges else "a range of batch sizes such as [1,64], then "
        return ranges or (BATCH_RANGE,), cursor.take(f"{before}the most milliseconds of a later token", _milliseconds)
    if mode != "performance":
        return (cursor.take_list("batch sizes: 1, 1,4 or [1,4], none twice", _sizes),), None
    sizes = _each(cursor, _sizes, pairs)
    if sizes is None:
        cursor.refuse("batch sizes: 1, 1,4 or [1,4], none twice, or a list of them for each pair: [[1,4],[1,8]]")
    if lists.number(cursor.peek()):
        cursor.refuse_known(f"prefill_batch: {PREFILL}")
    if cursor.peek() in REFUSED_SIZES:
        cursor.refuse_known(REFUSED_SIZES[cursor.peek()])
    return sizes, None


def _each(cursor: Words, one: Callable[[str], T | None], pairs: int) -> tuple[T, ...] | None:
    """A list for each pair or one for all, which `one` reads; None where the next word is neither."""
    where = cursor.at()
    several = cursor.take_list_if(lambda text: lists.nested(text, one))
    if several is not None:
        if len(several) != pairs:
            raise ConfigError(
                f"{where} holds {counted(len(several), 'list')} for {counted(pairs, 'pair')};"
                " give one for each, or one for all without the outer brackets"
            )
        return several
    single = cursor.take_list_if(one)
    return None if single is None else (single,)


def _sizes(text: str) -> lists.Numbers | None:
    values = lists.flat(text)
    return values if values and len(set(values)) == len(values) else None


def _range(text: str) -> lists.Numbers | None:
    values = lists.flat(text)
    return values if values and len(values) == 2 and values[0] <= values[1] else None


def _milliseconds(text: str) -> float | None:
    return float(text) or None if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) else None


def _weights(cursor: Words) -> Path:
    """The folder with config.json; a word that is none is a mistake here, not later."""
    where = cursor.at()
    word = cursor.take("weight_dir, the folder of the checkpoint", lambda word: word or None)
    if not _is_there(word, Path.is_dir):
        raise ConfigError(
            f"{where} is no folder; weight_dir, the folder of the checkpoint, belongs there (a shell variable that"
            " names it may not be set)"
        )
    try:
        return model_folder(word)
    except ConfigError as error:
        raise ConfigError(f"{where} is no weight_dir: {error}") from None


def _is_there(word: str, kind: Callable[[Path], bool]) -> bool:
    """Whether `word` names a path of a `kind`, as Path.is_file. A name that cannot be one does not."""
    try:
        return kind(Path(word).expanduser())
    except (OSError, RuntimeError):  # too long; ~ of a user there is not
        return False


def _ranks(cursor: Words) -> tuple[int, Nodes | None]:
    """chip_num, or the five words of several hosts."""
    chips = cursor.take_if(lists.number)
    if chips is not None:
        return chips, None
    expected = "chip_num, the number of ranks (several hosts: the rank table file)"
    where = cursor.at()
    rank_table = cursor.take(expected, _rank_table)
    world_size = cursor.take("world_size, the ranks of all hosts", lists.number)
    count = cursor.take("node_num, the number of hosts", lists.number)
    first = cursor.take("rank_id_start, the first rank of this host", _whole)
    address = cursor.take("master_addr, the address of the host of rank 0", lambda word: word or None)
    nodes = Nodes(rank_table, world_size, count, first, address)
    check_nodes(nodes, where)
    return world_size, nodes


def _rank_table(word: str) -> Path | None:
    return Path(word).expanduser() if _is_there(word, Path.is_file) else None


def _parallel(cursor: Words, chips: int) -> lists.Numbers:
    """The parallel sizes as written, or nothing. Raises ConfigError for one that is not supported."""
    where = cursor.at()
    values = cursor.take_list_if(lists.signed)
    if values is None:
        return ()
    if len(values) != len(PARALLEL):
        raise ConfigError(f"{where} holds {len(values)} numbers, {len(PARALLEL)} belong there: [{','.join(PARALLEL)}]")
    for name, value in zip(PARALLEL, values, strict=True):
        only = chips if name in ("tp", "moe_tp") else 1
        if value not in (-1, only):
            raise ConfigError(f"{where}: {name} {value} is not supported; with {chips} ranks it is -1 or {only}")
    return values
