"""The console script `atb-models`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from atb_models import __version__, env
from atb_models.command.exit_status import print_error, run_guarded
from atb_models.command.parser import Parser
from atb_models.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of `atb-models` with these arguments (None: the process's)."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_guarded(lambda: _dispatch(words))


def _dispatch(words: list[str]) -> int:
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]](words[1:])
    build_parser().parse_args(words or ["--help"])
    raise AssertionError("the parser accepts commands only")


def build_parser() -> Parser:
    """The parser of the command's name; each command reads its own arguments."""
    parser = Parser(
        prog="atb-models",
        description="Inference of mixture-of-experts models.",
        epilog="; ".join(f"{name}: {command.__doc__}" for name, command in COMMANDS.items()),
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=tuple(COMMANDS))
    return parser


def _run(words: list[str]) -> int:
    """run_pa.py in this process, its flags follow"""
    from atb_models.launcher.main import main as run_pa

    return 0 if _has_helped("run", words) else run_pa(words)


def _launch(words: list[str]) -> int:
    """run_pa.py on one rank a device, as the example scripts do"""
    from atb_models.launch import main as launch

    return 0 if _has_helped("launch", words) else launch(words)


def _has_helped(name: str, words: list[str]) -> bool:
    """Print run_pa.py's help under the name of this command, if the words ask for help."""
    from atb_models.launcher.args import build_parser as run_pa_parser

    asked = bool(HELP & set(words))
    if asked:
        run_pa_parser(f"atb-models {name}").print_help()
    return asked


def _serve(words: list[str]) -> int:
    """answer requests over HTTP"""
    from atb_models.server.serve import main as serve

    return serve(words)


def _chat(words: list[str]) -> int:
    """talk with a model, or with a server, in the terminal"""
    from atb_models.clients.chat import main as chat

    return chat(words)


def _bench(words: list[str]) -> int:
    """`bench serve` measures a server"""
    from atb_models.clients.bench_serve import main as bench_serve

    parser = Parser(prog="atb-models bench", description=COMMANDS["bench"].__doc__, allow_abbrev=False)
    parser.add_argument("what", choices=("serve",))
    parser.parse_args(words[:1])
    return bench_serve(words[1:])


def _batch(words: list[str]) -> int:
    """answer a file of requests in OpenAI's batch form"""
    from atb_models.clients.batch import main as batch

    return batch(words)


def _plan(words: list[str]) -> int:
    """what a model needs and how fast it can be; the flags of run_pa.py, which is not run"""
    from atb_models.launcher.args import plan_parser

    return _look("plan", "--plan", words, plan_parser)


def _graph(words: list[str]) -> int:
    """the operations of a prefill and a decode step; the flags of run_pa.py, which is not run"""
    from atb_models.launcher.args import graph_parser

    return _look("graph", "--print_graph", words, graph_parser)


def _look(name: str, flag: str, words: list[str], parser: Callable[[str, str | None], Parser]) -> int:
    """run_pa.py with `flag`, which the command's name stands for; parser: of the flags that the help shows."""
    if HELP & set(words):
        parser(f"atb-models {name}", COMMANDS[name].__doc__).print_help()
        return 0
    for word in words:
        if word in {f"--{other}" for other in LOOKS} - {flag}:
            raise ConfigError(f"`atb-models {name}` is {flag} and takes no {word}")
    return _run([flag, *words])


def _quantize(words: list[str]) -> int:
    """write a checkpoint again with the weights of its linear maps in fewer bits"""
    from atb_models.quantizer.main import main as quantize

    return quantize(words)


def _modeltest(words: list[str]) -> int:
    """accuracy and speed; the words of tests/modeltest/run.sh follow"""
    tests = Path(__file__).resolve().parents[1] / "tests"
    if (tests / "modeltest" / "run.sh").is_file():  # a checkout: its own, whatever else is installed
        sys.path.insert(1, str(tests))
    return int(import_module("modeltest.__main__").main(words, "atb-models modeltest"))


def _env(words: list[str]) -> int:
    """versions, and the environment variables with their values"""
    from atb_models.env_report import print_report

    _no_more("env", words)
    problems = print_report(sys.stdout)
    for problem in problems:
        print_error(problem)
    return ConfigError.exit_status if problems else 0


def _doctor(words: list[str]) -> int:
    """whether an Ascend NPU can be used here, step by step; for a bug report"""
    from atb_models.doctor import print_checks

    _no_more("doctor", words)
    env.set_default("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    return 0 if print_checks(sys.stdout) else 1


def _demo_path(words: list[str]) -> int:
    """the folder of the embedded checkpoint"""
    from atb_models.demo import demo_path

    _no_more("demo_path", words)
    print(demo_path())
    return 0


def _no_more(name: str, words: list[str]) -> None:
    """Refuse arguments of a command that has none but --help."""
    parser = Parser(prog=f"atb-models {name}", description=COMMANDS[name].__doc__, allow_abbrev=False)
    _, more = parser.parse_known_args(words)
    if more:
        raise ConfigError(f"unexpected word {more[0]!r}")


HELP = {"-h", "--help"}
LOOKS = ("plan", "print_graph", "profile")  # flags of run_pa.py of which there is one at most
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    "launch": _launch,
    "serve": _serve,
    "chat": _chat,
    "bench": _bench,
    "batch": _batch,
    "plan": _plan,
    "graph": _graph,
    "quantize": _quantize,
    "modeltest": _modeltest,
    "env": _env,
    "doctor": _doctor,
    "demo_path": _demo_path,
}

if __name__ == "__main__":
    sys.exit(main())
