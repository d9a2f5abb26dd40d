"""The batches of a run: their sizes, checked before an engine is opened, and their random prompts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from atb_models import LLM, SamplingParams
from atb_models.bounds import Batch, check_chip
from atb_models.errors import ConfigError
from atb_models.files import check_folder
from atb_models.json_file import read_json
from atb_models.limits import BLOCK_SIZE, PREFILL_TOKENS
from modeltest import places
from modeltest.command.cases import Options, Run
from modeltest.model import config_overrides

WARM_UP_TOKENS = 2


def batches_by_size(run: Run) -> dict[int, list[Batch]]:
    """By batch size, each as often as it is listed first; the pairs that have this size, in their order."""
    lists = run.batch_sizes if len(run.batch_sizes) > 1 else run.batch_sizes * len(run.pairs)
    of_pairs = list(zip(run.pairs, lists, strict=True))
    sizes = dict.fromkeys(size for sizes in lists for size in sizes)
    return {size: [Batch(*pair, size) for pair, sizes in of_pairs if size in sizes] for size in sizes}


def check_options(options: Options) -> None:
    """Refuse what would falsify the times, an unknown chip, and an output folder that cannot be written."""
    if options.prefix_cache:
        raise ConfigError("--prefix_cache would spare prompt tokens whose time is measured; leave it out")
    check_chip(options.chip, options.chips_file)
    check_folder(places.outputs(options), "--output_dir")


def check_batch(lengths: Sequence[int], answer: int) -> None:
    """Refuse prompts of these lengths whose answers end before the last prompt is read: they never decode together.

    The engine reads prompts in their order, PREFILL_TOKENS a step, and decodes those that it has read meanwhile.
    """
    later = _steps(sum(lengths)) - _steps(lengths[0])
    if 1 < answer < later + 2:
        raise ConfigError(
            f"batch {len(lengths)} of {max(lengths)} prompt tokens takes {later} steps of {PREFILL_TOKENS} tokens after"
            f" its first prompt is read, so answers of {answer} tokens never decode together; ask for answers of"
            f" {later + 2} tokens or more, or a smaller batch"
        )


def most_together(prompt: int, answer: int) -> int:
    """The largest batch that check_batch accepts, of answers of 2 tokens or more."""
    return (answer - 2 + _steps(prompt)) * PREFILL_TOKENS // prompt


def _steps(tokens: int) -> int:
    return math.ceil(tokens / PREFILL_TOKENS)


def kv_blocks(batch: Batch) -> int:
    """Blocks of a whole batch; the last token of an answer is never computed."""
    return batch.size * math.ceil((batch.prompt + batch.answer - 1) / BLOCK_SIZE)


def check_blocks(batches: Iterable[Batch], options: Options) -> int:
    """The KV blocks that the largest batch needs. Raises ConfigError where --kv_blocks has fewer."""
    largest = max(batches, key=kv_blocks)
    needed = kv_blocks(largest)
    if options.kv_blocks is not None and options.kv_blocks < needed:
        raise ConfigError(
            f"batch {largest.size} of {largest.prompt} + {largest.answer} tokens needs {needed} KV blocks of"
            f" {BLOCK_SIZE} tokens, --kv_blocks says {options.kv_blocks}; leave it out"
        )
    return options.kv_blocks or needed


def vocabulary(run: Run, options: Options) -> int:
    """The number of token ids that the model knows; its LLM is open, so config.json is sound."""
    config = read_json(run.weight_dir / "config.json") | (config_overrides(run, options) or {})
    return int(config["vocab_size"])


def random_prompts(batch: Batch, vocab: int, rng: np.random.Generator) -> list[list[int]]:
    """Ids drawn from the whole vocabulary, each prompt its own."""
    drawn: list[list[int]] = rng.integers(vocab, size=(batch.size, batch.prompt)).tolist()
    return drawn


def greedy(answer: int) -> SamplingParams:
    """Exactly `answer` tokens."""
    return SamplingParams(max_tokens=answer, temperature=0, ignore_eos=True)


def warm_up(llm: LLM, batches: Iterable[Batch], vocab: int) -> None:
    """The first tokens of the batch with the most prompt tokens, so that what is prepared once is prepared."""
    largest = max(batches, key=lambda batch: batch.size * batch.prompt)
    prompts = random_prompts(largest, vocab, np.random.default_rng(0))
    llm.generate(prompts, greedy(min(largest.answer, WARM_UP_TOKENS)))
