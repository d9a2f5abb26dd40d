"""run_pa: read the arguments, run the requests, print the answers. Under torchrun every rank runs this."""

from __future__ import annotations

import dataclasses
import io
import logging
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from atb_models import env, log
from atb_models.command.address_space import check_address_space
from atb_models.command.engine_options import ranks, take_device
from atb_models.command.exit_status import run_guarded
from atb_models.command.interrupt import interrupt_ends_at_once
from atb_models.engine.config import EngineConfig
from atb_models.launcher.args import parse_args
from atb_models.launcher.benchmark import WARM_UP_TOKENS, RunTimings, write_benchmark
from atb_models.launcher.inputs import DEFAULT_MAX_INPUT_LENGTH, Inputs, Lengths
from atb_models.launcher.look import look
from atb_models.launcher.prepare import Prepared, prepare
from atb_models.launcher.profiling import Profiling
from atb_models.launcher.report import AnswerPrinter, save_token_ids
from atb_models.machine.imports import import_torch_for_good
from atb_models.outputs import RequestOutput
from atb_models.sampling_params import SamplingParams

if TYPE_CHECKING:
    from atb_models import LLM

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of run_pa with these arguments (None: the process's)."""
    # torch_npu is imported where it is used; autoloading it would break `import torch` where CANN is missing.
    env.set_default("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    return run_guarded(lambda: run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> None:
    """Everything between the arguments and the last answer. Ranks other than 0 do not return from building the LLM."""
    log.setup()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale without Chinese must not end the run
    args = parse_args(argv)
    check_address_space()
    if args.plan or args.print_graph:
        look(args, ranks(args.tp))
        return
    prepared = prepare(args)
    with interrupt_ends_at_once(), import_torch_for_good():
        from atb_models import LLM
    device = take_device(prepared.config)
    profiling = Profiling(prepared.profile, device)
    _say_before(prepared.config)
    with LLM(prepared.config) as llm:
        outputs = _infer(llm, prepared, profiling)
    _warn_of_lengths(outputs, prepared.lengths)
    if env.get("ATB_LLM_TOKEN_IDS_SAVE_ENABLE"):
        save_token_ids(env.get("ATB_LLM_TOKEN_IDS_SAVE_FOLDER"), outputs)
    for output in outputs:
        output.raise_for_error()


def _say_before(config: EngineConfig) -> None:
    """What the user may not know about this run."""
    if config.model_path is None:
        logger.warning("no --model_path: the embedded toy checkpoint answers (its folder: `atb-models demo_path`)")
    else:
        logger.info("[MODEL_PATH]: %s", config.model_path)
    if config.trust_remote_code:
        logger.info("[TRUST_REMOTE_CODE]: true")


def _infer(llm: LLM, prepared: Prepared, profiling: Profiling) -> list[RequestOutput]:
    """Run the requests, print each answer when it is there, write the profile and the benchmark's csv."""
    benchmark = env.get("ATB_LLM_BENCHMARK_ENABLE")
    if benchmark:
        _warm_up(llm, prepared)
        llm.reset_timings()
    if env.get("ATB_LLM_LOGITS_SAVE_ENABLE"):
        from atb_models.launcher.logits_saver import logits_saver

        llm.on_step = logits_saver(env.get("ATB_LLM_LOGITS_SAVE_FOLDER"))
    logger.info("---------------begin inference---------------")
    logger.info("------total req num: %d, infer start--------", len(prepared.inputs.items))
    printer = AnswerPrinter(sys.stdout, has_text=prepared.load_tokenizer and llm.tokenizer is not None)
    outputs = []
    with profiling.around(llm):
        for output in _answers(llm, prepared.inputs, prepared.params, stream=prepared.stream):
            printer.update(output)
            if output.finish_reason is not None:
                outputs.append(output)
    logger.info("---------------end inference---------------")
    outputs.sort(key=lambda output: output.index)
    if benchmark:
        first = len(outputs[0].prompt_token_ids)
        timings = RunTimings.of_run(llm.metrics(), len(outputs), first, prepared.lengths.max_output_length)
        write_benchmark(timings, env.get("ATB_LLM_BENCHMARK_FILEPATH"))
    return outputs


def _warm_up(llm: LLM, prepared: Prepared) -> None:
    """Run a throw-away copy of the requests, so that the timed run does not pay for what happens only once."""
    logger.info("---------------begin warm_up---------------")
    params = dataclasses.replace(prepared.params, max_tokens=WARM_UP_TOKENS)
    for _ in _answers(llm, prepared.inputs, params, stream=False):
        pass
    logger.info("---------------end warm_up---------------")


def _answers(llm: LLM, inputs: Inputs, params: SamplingParams, *, stream: bool) -> Iterable[RequestOutput]:
    ask = llm.chat if inputs.is_chat else llm.generate
    return ask(inputs.items, params, stream=True) if stream else ask(inputs.items, params)


def _warn_of_lengths(outputs: Iterable[RequestOutput], lengths: Lengths) -> None:
    """Name prompts longer than planned for, and answers that the model's positions cut short."""
    planned = lengths.max_input_length or DEFAULT_MAX_INPUT_LENGTH
    for output in outputs:
        prompt, answer = len(output.prompt_token_ids), len(output.token_ids)
        if prompt > planned:
            logger.warning(
                "request %d has %d prompt tokens, more than --max_input_length %d; it was run whole",
                output.index, prompt, planned,
            )  # fmt: skip
        if output.finish_reason == "length" and answer < lengths.max_output_length:
            logger.warning(
                "request %d ended after %d of --max_output_length %d tokens: the positions of the model end there,"
                " %d were its prompt's",
                output.index, answer, lengths.max_output_length, prompt,
            )  # fmt: skip
