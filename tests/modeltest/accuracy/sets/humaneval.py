"""HumanEval: Python functions to complete, checked by running them. Chen et al. 2021, arXiv:2107.03374."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from atb_models.errors import ConfigError
from modeltest.accuracy.asking import write
from modeltest.accuracy.data import Source, json_rows
from modeltest.accuracy.questions import LanguageModel, Question, QuestionSet, ScoredAnswer
from modeltest.accuracy.sandbox import PASSED, check_sandbox, run_program
from modeltest.command.cases import Options, Run

FIELDS = {"task_id": str, "prompt": str, "test": str, "entry_point": str}
NEW_TOKENS = 512
WORKERS = 4
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # what begins something else than the function's body
_FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


def check(options: Options) -> None:
    if not options.allow_code_execution:
        raise ConfigError(
            "full_HumanEval runs the code that the model writes, in a process without network and rights;"
            " allow it with --allow_code_execution"
        )
    check_sandbox()


def read(paths: Sequence[Path], run: Run) -> list[Question]:
    """Raises ConfigError for a task that is there twice, as where the packed file lies beside the unpacked one."""
    questions: dict[str, Question] = {}
    for path in paths:
        for _, row in json_rows(path, FIELDS):
            task = row["task_id"]
            if task in questions:
                raise ConfigError(f"{task} is in {questions[task].file} and again in {path}; leave one of them there")
            questions[task] = Question(f"{path.name}:{task}", path.name, row["prompt"], PASSED, row)
    return list(questions.values())


def program(question: Question, text: str, *, chat: bool) -> str:
    """The completed function and its checks. chat: of an answer with a block of code, the first is taken.

    Such a block defines the function again; what the prompt defines besides stays.
    """
    fenced = _FENCED.search(text) if chat else None
    body = f"\n{fenced[1]}" if fenced else text
    return f"{question.prompt}{body}\n{question.row['test']}\ncheck({question.row['entry_point']})\n"


def answer(model: LanguageModel, questions: Sequence[Question], run: Run) -> list[ScoredAnswer]:
    """The answer given is how the program ended, see `run_program`."""
    prompts = [question.prompt for question in questions]
    outputs = write(model, prompts, NEW_TOKENS, chat=run.chat, stop=() if run.chat else STOP)
    programs = [program(question, out.text, chat=run.chat) for question, out in zip(questions, outputs, strict=True)]
    with ThreadPoolExecutor(min(WORKERS, len(os.sched_getaffinity(0)))) as pool:
        ends = list(pool.map(run_program, programs))
    return [
        ScoredAnswer(question.key, end, end == PASSED, out.prompt_token_ids, out.token_ids, text=out.text)
        for question, out, end in zip(questions, outputs, ends, strict=True)
    ]


SOURCE = Source(
    patterns=("[Hh]uman*[Ee]val*.jsonl", "[Hh]uman*[Ee]val*.jsonl.gz"),
    licence="MIT",
    address="https://github.com/openai/human-eval",
    sha256={
        "HumanEval.jsonl.gz": "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
        "HumanEval.jsonl": "1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2",
    },
)
SET = QuestionSet("HumanEval", SOURCE, "text", read, answer, check)
