"""An engine behind its standard input and output, a JSON object in each line. Needs nothing but Python.

Requests: {"do": name of a method, "with": its arguments}. Replies: {"gives": its result} or {"error": text}.
What libraries print to the standard output goes to the standard error.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterable
from time import perf_counter
from typing import Any


def serve(engine: object) -> None:
    """Answer requests until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any]
        try:
            reply = {"gives": getattr(engine, request["do"])(**request["with"])}
        except Exception as error:  # whatever a peer raises is its answer
            traceback.print_exc()
            reply = {"error": _told(error)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _told(error: BaseException) -> str:
    """The error, and after it the one at the root of it."""
    text, root = f"{type(error).__name__}: {error}", error
    while root.__cause__ or root.__context__:
        root = root.__cause__ or root.__context__
    return text if root is error else f"{text} ({type(root).__name__}: {root})"


def rate(arrivals: Iterable[int], sequences: int, prompt_tokens: int, new: int) -> float:
    """Tokens per second of prompts (`new` 0) or of the `new` tokens that follow each sequence's first.

    arrivals: for each new token, in the order of time, the number of its sequence. Reading them does the work.
    Raises RuntimeError where the prompts did not end in the same step: decoding would have begun beside them.
    """
    started = perf_counter()
    first = ended = started
    counts = [0] * sequences
    for index in arrivals:
        counts[index] += 1
        if sum(counts) == sequences:
            first = perf_counter()
            if min(counts) == 0:
                raise RuntimeError("the prompts were not computed in one step")
        ended = perf_counter()
    if min(counts) != new + 1:
        raise RuntimeError(f"{min(counts)} tokens instead of {new + 1}")
    return sequences * new / (ended - first) if new else prompt_tokens / (first - started)
