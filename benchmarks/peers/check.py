"""Do the engines compute the same model? Greedy tokens in float32, and perplexities of the GGUF files."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from peers.checkpoint import MERGE
from peers.engines import Engine, LlamaCpp, PeerError, Worker, gguf_path, last_words, say, unknown_architecture

PROMPTS, PROMPT, NEW = 2, 64, 16
CHUNKS, CHUNK = 4, 128  # of the text whose perplexity is compared
TOLERANCE = 0.01  # of a perplexity: what 16-bit values leave open
PROGRAM = "llama-perplexity"


def check(ours: Worker, peers: Sequence[Engine], folder: Path, dtypes: Sequence[str]) -> Iterator[tuple[bool, str]]:
    """For each comparison whether it holds, and a line about it. One engine runs at a time."""
    workers = [peer for peer in peers if isinstance(peer, Worker)]
    programs = [peer for peer in peers if isinstance(peer, LlamaCpp)]
    expected: list[list[int]] = []
    for engine in [ours, *workers] if workers else []:
        try:
            found = _greedy(engine, folder)
            expected = expected or found
            yield found == expected, f"{engine.name}, fp32: greedy tokens {_compared(found, expected)}"
        except PeerError as error:
            yield False, f"{engine.name}, fp32: {error}"
    for dtype in dtypes if programs else ():
        yield from _perplexities(ours, programs, folder, dtype)


def _greedy(engine: Worker, folder: Path) -> list[list[int]]:
    """The tokens after random prompts of bytes."""
    source = random.Random(0)
    try:
        engine.start(folder, "fp32")
        given = [[source.randrange(256) for _ in range(PROMPT)] for _ in range(PROMPTS)]
        return [engine.ask("tokens", prompt=prompt, new=NEW) for prompt in given]
    finally:
        engine.close()


def _compared(found: list[list[int]], expected: list[list[int]]) -> str:
    pairs = [pair for one, other in zip(found, expected, strict=True) for pair in zip(one, other, strict=True)]
    same, different = sum(a == b for a, b in pairs), len({b for _, b in pairs})
    return f"{same} of {len(pairs)} as ours, which are {different} different ones"


def _perplexities(ours: Worker, programs: Sequence[LlamaCpp], folder: Path, dtype: str) -> Iterator[tuple[bool, str]]:
    """Over the second half of each chunk, as llama-perplexity takes it."""
    text = _text()
    ids = list(text.encode())
    chunks = [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]
    try:
        ours.start(folder, dtype)
        expected = math.exp(ours.ask("surprise", chunks=chunks, first=CHUNK // 2))
    except PeerError as error:
        yield False, f"{ours.name}, {dtype}: {error}"
        return
    finally:
        ours.close()
    file = folder / "perplexity.txt"
    file.write_text(text, encoding="utf-8")
    for program in programs:
        try:
            found = _perplexity(program, gguf_path(folder, dtype), file)
        except PeerError as error:
            if unknown := unknown_architecture(error):
                say(f"{program.name} is left out: {unknown}")
            else:
                yield False, f"{program.name}, {dtype}: {error}"
            continue
        holds = abs(found / expected - 1) <= TOLERANCE
        yield holds, f"{program.name}, {dtype}: perplexity {found:.1f}, ours {expected:.1f}"


def _text() -> str:
    """Letters and spaces of one token each, in every tokenizer that knows bytes and the one merge."""
    letters = [letter for letter in "abcdefghijklmnopqrstuvwxyz" if letter not in MERGE]
    source = random.Random(1)
    return "".join(source.choice([*letters, " "]) for _ in range(CHUNKS * CHUNK))


def _perplexity(program: LlamaCpp, file: Path, text: Path) -> float:
    counts = ["-c", str(CHUNK), "-b", str(CHUNK), "-t", str(program.threads)]
    said = program.run(PROGRAM, "-m", str(file.resolve()), "-f", str(text.resolve()), *counts)
    found = re.search(rf"\[{CHUNKS}\]([0-9.]+),", said)  # over all chunks up to this one
    if found is None:
        raise PeerError(f"{PROGRAM} printed no perplexity of {CHUNKS} chunks: {last_words(said)}")
    return float(found.group(1))
