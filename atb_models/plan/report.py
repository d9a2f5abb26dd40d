"""A plan as text, within 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from atb_models.plan.capacity import GIB, counted, gib
from atb_models.plan.chips import FIGURES, PEAKS, Chip
from atb_models.plan.fits import CARD_GIB, RULE, Fit, usable
from atb_models.plan.memory import largest_step
from atb_models.plan.plan import Plan
from atb_models.plan.roofline import Times
from atb_models.plan.times import BATCHES, Cell

WIDTH = 100
SUMMARY_BATCHES = (BATCHES[0], BATCHES[-1])


def to_text(plan: Plan, in_full: Sequence[str]) -> str:
    """All sections; `in_full`: the chips whose times are listed one by one, with the sources of their figures."""
    sections = [_model(plan), _memory(plan), _cards(plan), _summary(plan)]
    sections += [_chip_in_full(plan, plan.chips[name]) for name in in_full]
    if not in_full:
        sections.append(
            iter(["the table has no chip of this machine's name; --chip NAME lists the times of one in full"])
        )
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _model(plan: Plan) -> Iterator[str]:
    model, limits = plan.deployment.model, plan.deployment.limits
    experts = sum(model.moe_layers)
    yield f"plan of {plan.folder}"
    yield f"  family      {model.model_type}, {counted(model.num_hidden_layers, 'layer')}" + (
        f", {experts} with {model.num_experts} routed experts, {model.num_experts_per_tok} a token" if experts else ""
    )
    total, active = plan.parameters
    yield f"  parameters  {total:,} in all, {active:,} active; embedding and head included"
    yield (
        f"  run         {plan.dtype}, {counted(plan.deployment.size, 'rank')};"
        f" at most {limits.max_prefill_tokens} prompt tokens a step,"
        f" {counted(limits.max_batch_size, 'sequence')} of {limits.max_seq_len} tokens"
    )


def _memory(plan: Plan) -> Iterator[str]:
    memory, size = plan.memory, plan.deployment.size
    queries, kv_lens = largest_step(plan.deployment.limits)
    step = f"{sum(queries)} tokens in {counted(len(queries), 'sequence')}, KV of {max(kv_lens)}"
    yield f"memory           {'a rank':>12} {'in all':>12}   GiB = 2^30 bytes"
    for name, value, note in (
        ("weights", memory.weights, ""),
        ("activations", memory.activations, f"   largest step: {step}"),
        ("KV of a token", memory.kv_per_token, f"   in blocks of {memory.block_size} tokens"),
    ):
        yield f"  {name:14} {_bytes(value):>12} {_bytes(size * value):>12}{note}"
    yield f"  this machine   {_here(plan)}"


def _here(plan: Plan) -> str:
    tokens, memory = plan.kv_tokens_here, plan.memory
    if plan.here is None or tokens is None:
        return f"has fewer devices than {plan.deployment.size} ranks need"
    free = f"{gib(plan.here)} for each rank"
    if tokens:
        return f"{free}: {tokens:,} tokens of KV fit"
    missing = memory.weights + memory.activations + memory.kv_block - plan.here
    return f"{free}: the model does not fit, {gib(missing)} are missing"


def _cards(plan: Plan) -> Iterator[str]:
    free = f"{CARD_GIB[0] - usable(CARD_GIB[0]) / GIB:.3g}"
    yield f"what fits: tokens of KV beside the model, on cards of which {free} GiB at least are kept free"
    columns = (*(f"{size} GiB" for size in CARD_GIB), "rule of thumb")
    yield "  cards  weights + activations" + "".join(f"{column:>16}" for column in columns)
    for fit in plan.fits:
        yield f"  {fit.cards:5}  " + (f"cannot: {fit.refusal}" if fit.memory is None else _card_row(fit))
    yield f"  rule of thumb: {RULE}, whatever activations and KV are"


def _card_row(fit: Fit) -> str:
    assert fit.memory is not None
    needed = f"{gib(fit.memory.weights + fit.memory.activations)} a card"
    cells = [f"lacks {gib(missing)}" if (missing := fit.missing(n)) else f"{fit.kv_tokens(n):,}" for n in CARD_GIB]
    return f"{needed:>21}" + "".join(f"{cell:>16}" for cell in (*cells, gib(int(fit.rule_bytes))))


def _summary(plan: Plan) -> Iterator[str]:
    size, budget = plan.deployment.size, plan.deployment.limits.max_prefill_tokens
    pairs = list(dict.fromkeys((cell.prompt, cell.answer) for cells in plan.cells.values() for cell in cells))
    yield f"roofline times in ms on {counted(size, 'rank')}: bounds from below, with nothing between operations"
    yield f"  first: until all prompts of the batch are read, {budget} tokens a step; next: a step amid the answers"
    yield f"  {'prompt, answer':25}" + "".join(f"{f'{prompt}, {answer}':>17}" for prompt, answer in pairs)
    yield f"  {'chip':19} {'batch':5}" + f"{'first':>9}{'next':>8}" * len(pairs)
    for name, chip in plan.chips.items():
        for batch in SUMMARY_BATCHES:
            cells = [cell for cell in plan.cells[name] if cell.batch == batch]
            yield f"  {name:19.19} {batch:5}" + "".join(
                f"{_ms(cell.first_token.total):>9}{_ms(cell.per_token.total) + _mark(plan, chip, cell):>8}"
                for cell in cells
            )
    yield "  *: the batch does not fit into the memory of so many of these chips at its full length"
    for prompt, answer in plan.left_out:
        positions = plan.deployment.model.max_position_embeddings
        yield f"  {prompt}, {answer} is left out: the model has {positions} positions"


def _chip_in_full(plan: Plan, chip: Chip) -> Iterator[str]:
    yield f"{chip.name} ({chip.device}), {counted(plan.deployment.size, 'rank')}, times in ms"
    parts = f"{'compute':>8}{'memory':>8}{'link':>7}"
    yield f"  prompt answer batch{'first':>8}{parts}{'next':>8}{parts}{'tokens/s':>10}"
    for cell in plan.cells[chip.name]:
        yield (
            f"  {cell.prompt:6} {cell.answer:6} {cell.batch:5}{_row(cell.first_token)}{_row(cell.per_token)}"
            f"{_rate(cell.tokens_per_second):>10}{_mark(plan, chip, cell)}"
        )
    if getattr(chip, PEAKS[plan.deployment.dtype]) is None:
        yield f"  no figure for {plan.dtype}: priced at the chip's fastest, which bounds it"
    yield "figures and their sources"
    for name in FIGURES:
        value = getattr(chip, name)
        text = f"{name} {'-' if value is None else f'{value:,.4g}'}: {chip.sources[name]}"
        yield from textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")


def _row(times: Times) -> str:
    return f"{_ms(times.total):>8}{_ms(times.compute):>8}{_ms(times.memory):>8}{_ms(times.communication):>7}"


def _mark(plan: Plan, chip: Chip, cell: Cell) -> str:
    return "" if plan.holds(chip, cell) else "*"


def _ms(seconds: float) -> str:
    """Milliseconds with about three digits; of more than a hundred seconds the seconds."""
    value = seconds * 1e3
    if value >= 1e5:
        return f"{seconds:.0f}s"
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _bytes(value: int) -> str:
    return gib(value) if value >= 1 << 20 else f"{value / 1024:.1f} KiB"
