"""What run_pa gives: answers on stdout, token ids in files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from atb_models.files import written_whole
from atb_models.outputs import RequestOutput, finite


class AnswerPrinter:
    """Prints `Answer[i]: <text>` and `Generate[i] token num: <new tokens>` in the requests' order.

    With `stream` the text of the first unfinished request appears as it comes; what the others say meanwhile waits. The
    leading blank of a text is left out. `has_text` False: the answer is the token ids, joined by commas.
    """

    def __init__(self, out: TextIO, *, has_text: bool) -> None:
        self.out, self.has_text = out, has_text
        self.finished: dict[int, RequestOutput] = {}
        self.streamed: dict[int, str] = {}  # by request: its text so far
        self.current = 0  # the request whose answer is being printed
        self.printed = 0  # characters of its text that are out

    def update(self, output: RequestOutput) -> None:
        """Take in a request's output; `delta` is the new part of one that is streamed."""
        self.streamed[output.index] = self.streamed.get(output.index, "") + output.delta
        if output.finish_reason is not None:
            self.finished[output.index] = output
        while self.current in self.finished:
            self._print_rest(self.finished.pop(self.current))
        if self.has_text:
            self._print(self.streamed.get(self.current, "").lstrip())
            self.out.flush()

    def _print_rest(self, output: RequestOutput) -> None:
        answer = output.text.lstrip() if self.has_text else ",".join(map(str, output.token_ids))
        self._print(answer)
        lines = [f"Generate[{output.index}] token num: {len(output.token_ids)}"]
        if not answer:
            lines.insert(0, f"Answer[{output.index}]: ")
        elif self.printed:
            lines.insert(0, "")
        if output.logprobs is not None:
            shown = [{token: finite(value) for token, value in known.items()} for known in output.logprobs]
            lines.append(f"Logprobs[{output.index}]: {json.dumps(shown, allow_nan=False)}")
        self.out.write("\n".join(lines) + "\n")
        self.current, self.printed = self.current + 1, 0

    def _print(self, text: str) -> None:
        """Write what of the current answer is not out yet."""
        if text and not self.printed:
            self.out.write(f"Answer[{self.current}]: ")
        self.out.write(text[self.printed :])
        self.printed = len(text)


def save_token_ids(folder: Path, outputs: Iterable[RequestOutput]) -> None:
    """Write input_ids_<i>.pth (a torch tensor) and output_ids_<i>.txt (blank separated) of every request, mode 0640."""
    import torch

    for output in outputs:
        with written_whole(folder / f"input_ids_{output.index}.pth") as path:
            torch.save(torch.tensor(output.prompt_token_ids, dtype=torch.int64), path)
        with written_whole(folder / f"output_ids_{output.index}.txt") as path:
            path.write_text(" ".join(map(str, output.token_ids)), encoding="utf-8")
