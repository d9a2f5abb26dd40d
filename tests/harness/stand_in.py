"""A model whose answers a test decides, and questions put to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from atb_models import RequestOutput, SamplingParams
from modeltest.accuracy.questions import QuestionSet, ScoredAnswer
from modeltest.command.cases import Run

BOS = 1


def run_of(mode: str, folder: Path = Path("."), **words: object) -> Run:
    """The words of a command on one rank; words: fields that differ."""
    fields = {"dtype": "fp16", "model": "deepseek", "chips": 1, "batch_sizes": ((1,),), **words}
    return Run(mode=mode, weight_dir=folder, **fields)  # type: ignore[arg-type]


class Letters:
    """A tokenizer whose tokens are characters."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * add_special_tokens + [ord(letter) for letter in text]

    def render_chat(self, conversation: Sequence[dict[str, str]]) -> str:
        return f"<user>{conversation[0]['content']}<assistant>"

    def apply_chat_template(self, conversation: Sequence[dict[str, str]]) -> list[int]:
        return self.encode(self.render_chat(conversation), False)


class StandIn:
    """write: prompt -> text. logprob: (text before, character) -> its log-probability.

    `prompts` and `params` keep what was asked, call by call.
    """

    tokenizer = Letters()

    def __init__(
        self, write: Callable[[str], str] = lambda prompt: "", logprob: Callable[[str, str], float] = lambda a, b: -1.0
    ) -> None:
        self._write, self._logprob = write, logprob
        self.prompts: list[list[str]] = []
        self.params: list[SamplingParams] = []

    def generate(self, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]) -> list[RequestOutput]:
        assert isinstance(params, SamplingParams)
        texts = ["".join(chr(token) for token in prompt if token != BOS) for prompt in prompts]
        self.prompts.append(texts)
        self.params.append(params)
        return [self._output(i, ids, text, params) for i, (ids, text) in enumerate(zip(prompts, texts, strict=True))]

    def _output(self, index: int, ids: list[int], prompt: str, params: SamplingParams) -> RequestOutput:
        text = self._write(prompt)
        chosen = {token: self._logprob(prompt, chr(token)) for token in params.logprob_token_ids or ()}
        start = len(ids) - len(prompt)
        output = RequestOutput(index, ids, self.tokenizer.encode(text, False), text, "stop", [chosen])
        if params.prompt_logprobs is not None:
            seen = [{token: self._logprob(prompt[: i - start], chr(token))} for i, token in enumerate(ids)]
            output.prompt_logprobs = [None, *seen[1:]]
        return output


def asked(question_set: QuestionSet, model: StandIn, paths: Sequence[Path], run: Run) -> list[ScoredAnswer]:
    """The answers to all questions of the files, in one batch."""
    return question_set.answer(model, question_set.read(paths, run), run)
