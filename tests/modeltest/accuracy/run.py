"""A question set asked in batches, at each batch size in turn; results, debug file and journal."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from atb_models.errors import AtbError, ConfigError
from atb_models.files import check_folder
from atb_models.json_file import read_json
from modeltest import environment, places
from modeltest.accuracy import files
from modeltest.accuracy.data import find, say_differences, sha256
from modeltest.accuracy.journal import AnsweredBatch, Journal
from modeltest.accuracy.questions import Asked, LanguageModel, Question, QuestionSet
from modeltest.accuracy.results import results
from modeltest.accuracy.weights import identity
from modeltest.command.cases import Options, Run
from modeltest.model import config_overrides, open_llm
from modeltest.progress import Bar
from modeltest.record import write_record

logger = logging.getLogger("atb_models.modeltest")
MAX_SEQ_LEN = 3072 + 512  # prompt and answer, as MindIE's modeltest sizes its engine


def run_set(question_set: QuestionSet, run: Run, options: Options) -> int:
    """Ask at every batch size and write the files -> exit status 0. One engine serves all sizes.

    All journals are opened before the first question, so that one that cannot be continued is no loss of hours.
    Raises ConfigError for data or settings, and whatever ends a batch: no answer is ever made up.
    """
    question_set.check(options)
    check_folder(places.outputs(options), "--output_dir")
    asked = collect(question_set, run, options)
    sizes = run.batch_sizes[0]
    with open_llm(run, options, max_batch_size=max(sizes), max_seq_len=max_seq_len(run, options)) as llm:
        facts = environment.facts(llm)
        with ExitStack() as stack:
            journals = [stack.enter_context(_journal(asked, size, run, options, facts)) for size in sizes]
            say_differences(question_set.source, asked.data)
            print("| Set | Batch | Accuracy | Correct | Questions |\n| --- | ---: | ---: | ---: | ---: |", flush=True)
            for size, journal in zip(sizes, journals, strict=True):
                answer_all(asked, llm, size, run, journal)
                _write(asked, size, run, options, facts, journal.batches)
    return 0


def collect(question_set: QuestionSet, run: Run, options: Options) -> Asked:
    """The questions in the data folder, the first `limit` of them over all files."""
    paths = find(question_set.name, question_set.source, places.data_folder(options, question_set.name))
    questions = question_set.read(paths, run)
    if not questions:
        raise ConfigError(f"{question_set.name}: {', '.join(map(str, paths))} has no rows")
    rows = [question.file for question in questions]
    data = [{"file": path.name, "sha256": sha256(path), "rows": rows.count(path.name)} for path in paths]
    return Asked(question_set, questions[: options.limit], data)


def max_seq_len(run: Run, options: Options) -> int:
    """Tokens of a prompt and its answer: the word max_position_embedding, else 3584 or the model's fewer positions."""
    if run.max_position_embedding is not None:
        return run.max_position_embedding
    config = {**read_json(run.weight_dir / "config.json"), **(config_overrides(run, options) or {})}
    limit = config.get("max_position_embeddings")
    return min(limit, MAX_SEQ_LEN) if isinstance(limit, int) else MAX_SEQ_LEN


def fingerprint(asked: Asked, size: int, run: Run, options: Options, device: Any) -> dict[str, Any]:
    """All that decides the answers. device: its type and name. prompts: changed by other examples or wording, too."""
    prompts = "\0".join(text for question in asked.questions for text in (question.prompt, question.golden))
    return {
        "set": asked.set.name,
        "data": {one["file"]: one["sha256"] for one in asked.data},
        "limit": options.limit,
        "shots": run.shots,
        "chat": run.chat,
        "batch_size": size,
        "tp": run.chips,
        "dtype": run.dtype,
        "device": device,
        "load_format": options.load_format,
        "quantize": options.quantize,
        "kv_dtype": options.kv_dtype,
        "config_overrides": config_overrides(run, options),
        "prefix_cache": options.prefix_cache,
        "kv_blocks": options.kv_blocks,
        "weights": identity(run.weight_dir, dummy=options.load_format == "dummy"),
        "prompts": hashlib.sha256(prompts.encode("utf-8", "surrogatepass")).hexdigest(),
    }


def answer_all(asked: Asked, model: LanguageModel, size: int, run: Run, journal: Journal) -> None:
    """Answer what the journal lacks. The batches are always rows 0..size-1, size..2*size-1 and so on."""
    questions = asked.questions
    with Bar(len(questions), f"{run.mode} batch {size}", done=min(len(questions), len(journal.batches) * size)) as bar:
        correct = [answer.correct for batch in journal.batches for answer in batch.answers]
        for batch in _batches(questions, size, first=len(journal.batches)):
            start = time.perf_counter()
            try:
                answers = asked.set.answer(model, batch, run)
            except AtbError as error:
                raise type(error)(f"questions {batch[0].key} to {batch[-1].key}: {error}") from error
            journal.add(AnsweredBatch(answers, time.perf_counter() - start))
            correct += [answer.correct for answer in answers]
            bar.note(f"accuracy {sum(correct) / len(correct):.4f}")
            bar.update(len(batch))


def _name(asked: Asked, size: int, run: Run) -> str:
    """What the names of the files begin with."""
    return f"{asked.set.name}_pa_batch{size}_tp{run.chips}"


def _journal(asked: Asked, size: int, run: Run, options: Options, facts: dict[str, Any]) -> Journal:
    path = places.folder("debug", facts, run, options) / f"{_name(asked, size, run)}_journal.jsonl"
    decisive = fingerprint(asked, size, run, options, facts["device"])
    return Journal(path, decisive, {"git": facts["git"], "versions": facts["versions"]}, resume=options.resume)


def _write(
    asked: Asked, size: int, run: Run, options: Options, facts: dict[str, Any], batches: Sequence[AnsweredBatch]
) -> None:
    """The debug file, the result and the record of a size."""
    kept, target = (places.folder(kind, facts, run, options) for kind in ("debug", "results"))
    name, found = _name(asked, size, run), results(asked, size, batches)
    answers = [answer for batch in batches for answer in batch.answers]
    files.write_debug(kept / f"{name}_debug_{datetime.now():%Y%m%d-%H%M%S}.csv", asked.questions, answers)
    files.write_result(target / f"{name}_full_result.csv", found["files"])
    write_record(target / f"{name}_full_result.json", "accuracy", run, options, facts, found)
    _say(found, target / f"{name}_full_result.csv")


def _say(found: dict[str, Any], target: Path) -> None:
    """The table's row on stdout, then MindIE's two last lines as log."""
    print(
        f"| {found['set']} | {found['batch_size']} | {found['accuracy']:.4f} | {found['correct']} | {found['n']} |",
        flush=True,
    )
    if "mc2" in found:
        logger.info("MC1 %.4f, MC2 %.4f", found["mc1"], found["mc2"])
    logger.info("result: %s", json.dumps(list(found["files"][0].values())))
    logger.info("%s result saved to: %s", found["set"], target)


def _batches(questions: Sequence[Question], size: int, *, first: int) -> Iterator[Sequence[Question]]:
    for start in range(first * size, len(questions), size):
        yield questions[start : start + size]
