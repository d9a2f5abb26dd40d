"""The modes performance_single and precision_single: the user's own prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any

from atb_models import LLM, RequestOutput, SamplingParams
from atb_models.bounds import Batch
from atb_models.errors import ConfigError
from modeltest import environment, places
from modeltest.command.cases import Options, Run
from modeltest.model import open_llm
from modeltest.progress import Bar
from modeltest.reports import tables
from modeltest.speed import load
from modeltest.speed.measure import measure
from modeltest.speed.rooflines import Bounds, bounds
from modeltest.speed.run import log_case, save, write_tables

Case = dict[str, Any]
Prompts = Sequence[list[int]]


def run_single(run: Run, options: Options) -> int:
    """Answer each prompt, in batches; performance_single times them -> 0, the exit status. Raises AtbError.

    For each batch size in turn and, within it, each pair, whose first number bounds the prompts and whose second is the
    most tokens of an answer. performance_single ignores the EOS token and fills the last batch with the first prompts
    again, so that each batch is of its size.
    """
    (sizes,) = run.batch_sizes
    if run.is_performance:
        load.check_options(options)
    llm = open_llm(
        run,
        options,
        max_batch_size=max(sizes),
        max_seq_len=max(sum(pair) for pair in run.pairs),
        max_prefill_tokens=load.PREFILL_TOKENS,
    )
    with llm:
        prompts = [_token_ids(llm, text, run.chat) for text in run.texts]
        _check_lengths(prompts, run.pairs)
        if run.is_performance:
            _measure(llm, prompts, run, options)
        else:
            for size in sizes:
                for _, answer in run.pairs:
                    params = SamplingParams(max_tokens=answer, temperature=0)
                    for start in range(0, len(prompts), size):
                        show(start, run.texts[start:], llm.generate(prompts[start : start + size], params))
    return 0


def groups(prompts: Prompts, size: int) -> list[list[list[int]]]:
    """Batches of `size` prompts each, the last one filled with the first prompts again."""
    number = -(-len(prompts) // size)
    filled = list(islice(cycle(prompts), number * size))
    return [filled[start : start + size] for start in range(0, len(filled), size)]


def show(first: int, texts: Sequence[str], outputs: Iterable[RequestOutput]) -> None:
    """Print each prompt with its answer, numbered from `first`; outputs without a text of their own are left out."""
    for number, (text, output) in enumerate(zip(texts, outputs, strict=False), first):
        print(f"Question[{number}]: {text}")
        print(f"Answer[{number}]: {output.text.lstrip()}")
        print(f"Generate[{number}] token num: {len(output.token_ids)}", flush=True)


def _measure(llm: LLM, prompts: Prompts, run: Run, options: Options) -> None:
    """Time the batches, print the answers, and write what the mode performance writes, but for the plot."""
    (sizes,) = run.batch_sizes
    facts = environment.facts(llm)
    folder = places.folder("results", facts, run, options)
    batches = [(group, answer) for size in sizes for _, answer in run.pairs for group in groups(prompts, size)]
    for group, answer in batches:
        load.check_batch([len(ids) for ids in group], answer)
    found = bounds(llm, [_shortest(group, answer) for group, answer in batches], options)
    llm.generate(batches[0][0], load.greedy(load.WARM_UP_TOKENS))
    cases: list[Case] = []
    with Bar(len(batches), run.mode) as bar:
        for size in sizes:
            of_size = _of_size(llm, size, prompts, run, found, bar)
            write_tables(folder, run, size, of_size)
            cases += of_size
    print(tables.markdown(tables.CONSOLE, cases))
    save(folder, run, options, facts, {"cases": cases, **found.facts()}, sizes, plot=False)


def _of_size(llm: LLM, size: int, prompts: Prompts, run: Run, found: Bounds, bar: Bar) -> list[Case]:
    cases = []
    for _, answer in run.pairs:
        for number, group in enumerate(groups(prompts, size)):
            measured, outputs = measure(llm, partial(llm.generate, group, load.greedy(answer)), answer)
            cases.append(measured.case(found.of.get(_shortest(group, answer))))
            log_case(cases[-1])
            show(number * size, run.texts[number * size :], outputs)
            bar.update()
    return cases


def _shortest(group: Prompts, answer: int) -> Batch:
    """As if all were of the length of the shortest: what bounds that from below bounds the batch."""
    return Batch(min(map(len, group)), answer, len(group))


def _token_ids(llm: LLM, text: str, chat: bool) -> list[int]:
    """The text, as a user's turn where it is a chat. Raises ConfigError where the checkpoint has no tokenizer."""
    if llm.tokenizer is None:
        raise ConfigError(f"texts need a tokenizer, {llm.config.folder} has none; use the mode performance instead")
    if chat:
        return llm.tokenizer.apply_chat_template([{"role": "user", "content": text}])
    return llm.tokenizer.encode(text)


def _check_lengths(prompts: Prompts, pairs: Sequence[tuple[int, int]]) -> None:
    shortest = min(prompt for prompt, _ in pairs)
    for number, ids in enumerate(prompts):
        if len(ids) > shortest:
            raise ConfigError(
                f"prompt {number} has {len(ids)} tokens, a pair allows {shortest}; raise the pair's first number or"
                " shorten the prompt"
            )
