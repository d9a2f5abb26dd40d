"""The launcher, as examples/launch.py starts it; after an answer it says what can be tried next, on stderr."""

import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from atb_models.command.interrupt import interrupt_ends_at_once  # noqa: E402

with interrupt_ends_at_once():
    from atb_models.launch import main
    from atb_models.launcher.args import parse_args

ASK = "print(LLM().chat([[{'role': 'user', 'content': 'Who is the CEO of Google?'}]])[0].text)"


def next_steps() -> str:
    """The commands, as they can be typed in the working folder, with this interpreter's environment."""
    binaries = Path(os.environ.get("VENV") or sys.prefix).absolute() / "bin"
    command, python, activate = (_typed(binaries / name) for name in ("atb-models", "python", "activate"))
    demo = ROOT / "atb_models" / "demo"
    boolq = f"{_typed(demo / 'checkpoint')} 1 --data_dir {_typed(demo / 'boolq')} --limit 8"
    return f"""
It works. Try next:

  a conversation in the terminal; Ctrl-D ends it
    {command} chat
  the service; its chat page is http://127.0.0.1:6006 when the log says ready, Ctrl-C ends it
    {command} serve
  the same model in a Python program
    {python} -c "from atb_models import LLM; {ASK}"
  its accuracy
    {command} modeltest pa_fp16 full_BoolQ 8 deepseek {boolq}

Without the folder before atb-models and python, once in each shell:
    . {activate}
"""


def _typed(path: Path) -> str:
    """A path as a shell takes it: from the working folder if it is there, else whole."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def answered() -> bool:
    """Whether a launcher that ended well has answered, and not only looked at the model."""
    args = parse_args(sys.argv[1:])
    return not (args.plan or args.print_graph)


status = main()
if status == 0 and answered():
    print(next_steps(), file=sys.stderr, end="")
sys.exit(status)
