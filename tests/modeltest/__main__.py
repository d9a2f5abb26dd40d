"""`python -m modeltest`: the words of run.sh, or compare, or report."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from atb_models import env, log
from atb_models.command.exit_status import run_guarded
from atb_models.errors import ConfigError
from modeltest.command import checks, grammar, nodes, options
from modeltest.command.cases import Options, Run
from modeltest.command.help import help_text, usage

COMMANDS = {"compare": "modeltest.reports.compare", "report": "modeltest.reports.report"}
RUNNERS = {
    "performance": "modeltest.speed:run_performance",
    "performance_maxbs": "modeltest.speed:run_maxbs",
    "performance_single": "modeltest.speed:run_single",
    "precision_single": "modeltest.speed:run_single",
}
QUESTIONS = "modeltest.accuracy:run_accuracy"


def main(argv: Sequence[str] | None = None, program: str = "bash run.sh") -> int:
    """Exit status of modeltest with these words (None: the process's). program: what its help calls it."""
    # torch_npu is imported where it is used; autoloading it would break `import torch` where CANN is missing.
    env.set_default("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale without Chinese must not end the run
    return run_guarded(lambda: _dispatch(list(sys.argv[1:] if argv is None else argv), program))


def _dispatch(words: list[str], program: str) -> int:
    if words and words[0] in COMMANDS:
        command: Callable[[list[str]], int] = import_module(COMMANDS[words[0]]).main
        return command(words[1:])
    if not words:
        print(usage(program), file=sys.stderr)
        return ConfigError.exit_status
    if {"-h", "--help"} & set(words):
        print(help_text(program))
        return 0
    return _run(words)


def _run(words: list[str]) -> int:
    log.setup()
    before_flags, flags = options.split(words)
    run = grammar.parse(before_flags, *flags[:1])
    chosen = options.parse(flags, run)
    checks.check_family(run)
    checks.check_devices(run)
    if run.nodes is not None and not nodes.is_rank():
        return nodes.run_ranks(run.nodes, words)
    return _runner(run.mode)(run, chosen)


def _runner(mode: str) -> Callable[[Run, Options], int]:
    module, _, name = RUNNERS.get(mode, QUESTIONS).partition(":")
    runner: Callable[[Run, Options], int] = getattr(import_module(module), name)
    return runner


if __name__ == "__main__":
    sys.exit(main())
