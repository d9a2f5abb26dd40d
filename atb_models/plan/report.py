"""A plan as text, within 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from atb_models.graph.labels import dtype_name
from atb_models.models.label import model_label
from atb_models.plan.chips import FIGURES, PEAKS, THIS_CPU, Chip
from atb_models.plan.fits import CARD_GIB, RULE, Fit, kept_free
from atb_models.plan.memory import largest_step
from atb_models.plan.padding import Padding
from atb_models.plan.plan import Plan, refusal
from atb_models.plan.roofline import Times
from atb_models.plan.times import BATCHES, Cell, pairs_within
from atb_models.wording import counted, gib, precision

WIDTH = 100
MOST_NAME = 24  # characters of a chip's name in the table of all chips
MOST_MS = 1e5  # longer times are shown in seconds
SUMMARY_BATCHES = (BATCHES[0], BATCHES[-1])


def to_text(plan: Plan, in_full: Sequence[str]) -> str:
    """All sections. in_full: the chips whose times are listed in full, with the sources of their figures."""
    sections = [_model(plan), _memory(plan), _cards(plan), _summary(plan)]
    sections += [_chip_in_full(plan, plan.chips[name]) for name in in_full]
    if not in_full:
        sections.append(iter(["no chip of the table is this machine's; --chip NAME lists the times of one in full"]))
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _model(plan: Plan) -> Iterator[str]:
    model, limits = plan.deployment.model, plan.deployment.limits
    experts = sum(model.moe_layers)
    yield f"plan of {model_label(plan.folder)}"
    yield f"  family      {model.model_type}, {counted(model.num_hidden_layers, 'layer')}" + (
        f", {experts} with {model.num_experts} routed experts, {model.num_experts_per_tok} a token" if experts else ""
    )
    total, active = plan.parameters
    kv_dtype = None if plan.deployment.kv_dtype is None else dtype_name(plan.deployment.kv_dtype)
    storage = precision(plan.dtype, plan.deployment.storage, kv_dtype)
    yield f"  parameters  {total:,} in all, {active:,} active; embedding and head included"
    yield (
        f"  run         {storage}, {counted(plan.deployment.size, 'rank')};"
        f" at most {counted(limits.max_prefill_tokens, 'prompt token')} a step,"
        f" {counted(limits.max_batch_size, 'sequence')} of {counted(limits.max_seq_len, 'token')}"
    )


def _memory(plan: Plan) -> Iterator[str]:
    memory, size = plan.memory, plan.deployment.size
    queries, kv_lens = largest_step(plan.deployment.limits)
    step = f"{counted(sum(queries), 'token')} in {counted(len(queries), 'sequence')}, KV of {max(kv_lens)}"
    yield f"memory           {'a rank':>12} {'in all':>12}   GiB = 2^30 bytes"
    for name, value, note in (
        ("weights", memory.weights, ""),
        ("activations", memory.activations, f"   largest step: {step}"),
        ("KV of a token", memory.kv_per_token, f"   in blocks of {counted(memory.block_size, 'token')}"),
    ):
        yield f"  {name:14} {_bytes(value):>12} {_bytes(size * value):>12}{note}"
    yield from _padding(plan.padding)
    yield f"  this machine   {_here(plan)}"


def _padding(padding: Padding) -> Iterator[str]:
    """What zeros cost; nothing where no heads are zeros and less than a thousandth of the weights is."""
    shares = padding.shares
    if not shares.zero_heads and padding.weights < 1e-3:
        return
    weights, cache = f"{100 * padding.weights:.1f} %", f"{100 * padding.kv_per_token:.1f} %"
    every = shares.size * shares.heads
    heads = f": {counted(shares.heads, 'head')} a rank, {every} for {shares.total}" if shares.zero_heads else ""
    yield f"  padding        {weights} of the weights, {cache} of the KV cache are zeros{heads}"
    if padding.without_heads:
        yield f"                 {counted(padding.without_heads, 'rank')} without a head of the model"


def _here(plan: Plan) -> str:
    """Whether an engine can start with the memory of this machine."""
    tokens, size, asked = plan.kv_tokens_here, plan.deployment.size, plan.kv_blocks
    if plan.here is None or tokens is None:
        return f"has fewer devices than {counted(size, 'rank')} {'needs' if size == 1 else 'need'}"
    free = f"{gib(max(0, plan.here))} for {'each rank' if size > 1 else 'the process'}"
    if not tokens:
        what = f"--kv_blocks {asked} does" if asked else "the model does"
        return f"{free}: {what} not fit, {gib(plan.missing_here)} are missing"
    if asked:
        return f"{free}: --kv_blocks {asked} fits, {counted(tokens, 'token')} of KV"
    full = tokens == plan.deployment.limits.full_batch_blocks * plan.memory.block_size
    return f"{free}: {tokens:,} tokens of KV, {'a full batch' if full else 'all that fits'}"


def _cards(plan: Plan) -> Iterator[str]:
    free = kept_free(CARD_GIB[0])
    kept = f", on cards of which {free:.3g} GiB at least are kept free" if free else ", on whole cards"
    yield f"what fits: tokens of KV beside the model{kept}"
    columns = (*(f"{size} GiB" for size in CARD_GIB), "rule of thumb")
    yield "  cards  weights + activations" + "".join(f"{column:>16}" for column in columns)
    for fit in plan.fits:
        yield f"  {fit.cards:5}  " + (f"cannot: {fit.refusal}" if fit.memory is None else _card_row(fit))
    yield f"  rule of thumb: {RULE}, whatever activations and KV are"


def _card_row(fit: Fit) -> str:
    assert fit.memory is not None
    needed = f"{gib(fit.memory.needed(0))} a card"
    cells = [f"lacks {gib(missing)}" if (missing := fit.missing(n)) else f"{fit.kv_tokens(n):,}" for n in CARD_GIB]
    return f"{needed:>21}" + "".join(f" {cell:>15}" for cell in (*cells, gib(int(fit.rule_bytes))))


def _summary(plan: Plan) -> Iterator[str]:
    ranks = counted(plan.deployment.size, "rank")
    cells = [cell for name in plan.chips for cell in plan.cells[name] if cell.batch in SUMMARY_BATCHES]
    if cells:
        yield f"roofline times in {_unit(cells)} on {ranks}: bounds from below, where tokens choose experts at random"
        yield from _summary_table(plan)
    else:
        yield f"roofline times on {ranks}: none"
    if THIS_CPU not in plan.chips:
        yield f"  {THIS_CPU} is left out: there is too little memory to measure it"
    for prompt, answer in plan.left_out:
        positions = plan.deployment.model.max_position_embeddings
        yield f"  {prompt}, {answer} is left out: the model has {counted(positions, 'position')}"


def _summary_table(plan: Plan) -> Iterator[str]:
    budget = counted(plan.deployment.limits.max_prefill_tokens, "token")
    pairs = pairs_within(plan.deployment.model.max_position_embeddings)
    names = {name: name if len(name) <= MOST_NAME else name[: MOST_NAME - 3] + "..." for name in plan.chips}
    width = max(map(len, names.values()))
    yield f"  first: until all prompts are read, {budget} a step; next: one step in the middle of the answers"
    yield f"  {'prompt, answer':{width + 6}}" + "".join(f"{f'{prompt}, {answer}':>17}" for prompt, answer in pairs)
    yield f"  {'chip':{width}} batch" + f"{'first':>9}{'next':>8}" * len(pairs)
    for name, chip in plan.chips.items():
        for batch in SUMMARY_BATCHES:
            cells = [cell for cell in plan.cells[name] if cell.batch == batch]
            yield f"  {names[name]:{width}} {batch:5}" + "".join(
                f"{_ms(cell.first_token.total):>9}{_ms(cell.per_token.total) + _mark(plan, chip, cell):>8}"
                for cell in cells
            )
    yield "  *: this number of chips cannot hold the whole batch at its full length"
    refusing: dict[str, list[str]] = {}
    for name, chip in plan.chips.items():
        if refused := refusal(plan.deployment, chip):
            refusing.setdefault(refused, []).append(name)
    for refused, chips in refusing.items():
        yield from textwrap.wrap(
            f"the engine refuses {refused} there today: {', '.join(chips)}", WIDTH, initial_indent="  ",
            subsequent_indent="    ",
        )  # fmt: skip
    names_of: dict[str, list[str]] = {}
    for name, chip in plan.chips.items():
        if found := _assumed(chip):
            names_of.setdefault(_listed(found), []).append(name)
    assumed = [f"{', '.join(alike)}: {figures}" for figures, alike in names_of.items()]
    if assumed:
        yield from textwrap.wrap(
            f"figures without a source - {'; '.join(assumed)}", WIDTH, initial_indent="  ", subsequent_indent="    "
        )


def _assumed(chip: Chip) -> list[str]:
    """The figures that have a value and no source."""
    return [name for name in FIGURES if chip.sources[name].startswith("none") and getattr(chip, name) is not None]


def _listed(figures: list[str]) -> str:
    """A short description of a subset: by what is in it, or by what is not, whichever is shorter."""
    others = [name for name in FIGURES if name not in figures]
    return ", ".join(figures) if len(figures) <= len(others) else "all but " + ", ".join(others)


def _chip_in_full(plan: Plan, chip: Chip) -> Iterator[str]:
    cells, ranks = plan.cells[chip.name], counted(plan.deployment.size, "rank")
    yield f"{chip.name} ({chip.device}), {ranks}, " + (f"times in {_unit(cells)}" if cells else "no times")
    parts = f"{'compute':>8}{'memory':>8}{'link':>7}"
    if cells:
        yield f"  prompt answer batch{'first':>8}{parts}{'next':>8}{parts}{'tokens/s':>10}"
    for cell in cells:
        yield (
            f"  {cell.prompt:6} {cell.answer:6} {cell.batch:5}{_row(cell.first_token)}{_row(cell.per_token)}"
            f"{_rate(cell.tokens_per_second):>10}{_mark(plan, chip, cell)}"
        )
    if cells and getattr(chip, PEAKS[plan.deployment.dtype]) is None:
        yield f"  no figure for {plan.dtype}: priced at the chip's fastest rate, an upper bound"
    yield "figures and their sources"
    for name in FIGURES:
        value = getattr(chip, name)
        text = f"{name} {'-' if value is None else f'{value:,.4g}'}: {chip.sources[name]}"
        yield from textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")


def _row(times: Times) -> str:
    return f"{_ms(times.total):>8}{_ms(times.compute):>8}{_ms(times.memory):>8}{_ms(times.communication):>7}"


def _unit(cells: Iterable[Cell]) -> str:
    """The unit for the times of these cells."""
    return "ms (s: seconds)" if any(cell.first_token.total * 1e3 >= MOST_MS for cell in cells) else "ms"


def _mark(plan: Plan, chip: Chip, cell: Cell) -> str:
    return "" if plan.holds(chip, cell) else "*"


def _ms(seconds: float) -> str:
    """Milliseconds with about three digits; seconds beyond a hundred seconds."""
    value = seconds * 1e3
    if value >= MOST_MS:
        return f"{seconds:.0f}s"
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _bytes(value: int) -> str:
    return gib(value) if value >= 1 << 20 else f"{value / 1024:.1f} KiB"
